"""Run as a process: reads --dataset c4 from the hub that HF_ENDPOINT names and writes what it saw as JSON.

usage: read_c4.py OUT UPDATES FLAGS STATE, where FLAGS and STATE are JSON
"""

import json
import sys
from pathlib import Path

from peft_pretraining.data import DataError
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import Ranks


def main() -> None:
    """Writes digests and the position, or the error."""
    out, updates, flags, state = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
    try:
        run = Ranks(state=state, dataset="c4", **flags)
        seen = {"digests": run.digests(updates), "state": run.state(), "counters": run.ranks[0].counters}
        tokens = sum(int(batch.lengths.sum()) for data in run.ranks for batch in data.evaluation_batches(4))
        Path(out).write_text(json.dumps({**seen, "eval_tokens": tokens}))
        run.close()
    except (DataError, UsageError) as error:
        Path(out).write_text(json.dumps({"error": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main()
