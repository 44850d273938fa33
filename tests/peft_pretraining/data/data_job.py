"""Run as a process: takes updates, writing a line for each and then a checkpoint, until it is killed or done.

usage: data_job.py FOLDER UPDATES WORLD_SIZE FLAGS (FLAGS is JSON)
"""

import json
import os
import sys
from pathlib import Path

from tests.peft_pretraining.data.corpora import Ranks


def main() -> None:
    """Goes on from the checkpoint in FOLDER, if there is one."""
    folder, updates, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    checkpoint = folder / "checkpoint.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else None
    run = Ranks(world_size, state=state, **json.loads(sys.argv[4]))
    done = 0 if state is None else state["drawn"]
    with (folder / "seen.txt").open("a") as seen:
        for update in range(done, updates):
            seen.write(f"{update} {run.digests(1)[0]}\n")
            seen.flush()
            if update % 3 == 0:
                (folder / "partial").write_text(json.dumps(run.state()))
                os.replace(folder / "partial", checkpoint)
    run.close()


if __name__ == "__main__":
    main()
