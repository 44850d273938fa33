"""Run as a process, alone or under torchrun: reads --dataset c4 from the hub that HF_ENDPOINT names.

usage: read_c4.py OUT UPDATES FLAGS STATE, where FLAGS and STATE are JSON; what it saw is written to OUT as JSON
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from peft_pretraining.data import DataError, merge_states
from peft_pretraining.distributed.world import World
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import Ranks, digest, open_data


def alone(updates: int, flags: dict[str, Any], state: Any) -> dict[str, Any]:
    """All ranks in this process: digests, position, counters, tokens of the validation set."""
    run = Ranks(state=state, dataset="c4", **flags)
    seen = {"digests": run.digests(updates), "state": run.state(), "counters": run.ranks[0].counters}
    tokens = sum(int(batch.lengths.sum()) for data in run.ranks for batch in data.evaluation_batches(4))
    run.close()
    return {**seen, "eval_tokens": tokens}


def together(updates: int, flags: dict[str, Any]) -> dict[str, Any]:
    """A rank a process."""
    dist.init_process_group("gloo")
    world_size = dist.get_world_size()

    def gathered(value: Any) -> list[Any]:
        values = [None] * world_size
        dist.all_gather_object(values, value)
        return values

    world = World(torch.device("cpu"), dist.get_rank(), world_size)
    data = open_data(world.rank, world_size, world, dataset="c4", **flags)
    digests = [digest(gathered(next(data))) for _ in range(updates)]
    state = merge_states(gathered(data.state_dict()))
    tokens = sum(gathered(sum(int(batch.lengths.sum()) for batch in data.evaluation_batches(4))))
    data.close()
    dist.destroy_process_group()
    return {"digests": digests, "state": state, "counters": data.counters, "eval_tokens": tokens}


def main() -> None:
    """Writes what was seen, or the error."""
    out, updates, flags, state = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
    try:
        seen = together(updates, flags) if "RANK" in os.environ else alone(updates, flags, state)
    except (DataError, UsageError) as error:
        seen = {"error": type(error).__name__, "message": str(error)}
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
