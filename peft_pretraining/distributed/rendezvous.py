"""The rendezvous: how the processes of a run find one another."""

import time
import uuid

import torch.distributed as dist

from peft_pretraining.distributed.watchdog import PeerLost

_POLL_SECONDS = 0.05


def rendezvous(store: dist.Store, rank: int, world_size: int, timeout: float) -> dist.Store:
    """A part of the store that belongs to exactly these processes, once all of them are there.

    When torchrun restarts its processes, its store still holds what the dead ones wrote, and gloo then
    connects to addresses that are gone. Restart counts differ between machines, so rank 0 invents a name, and
    each other process asks for it under a name of its own that no earlier process can have used.

    timeout: seconds. Raises PeerLost naming the ranks that do not come.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        _gather(store, own, set(range(1, world_size)), timeout)
        return dist.PrefixStore(own, store)
    store.set(f"asks/{rank}", own)
    try:
        common = store.get(f"answer/{own}").decode()
    except RuntimeError as error:
        raise PeerLost(f"rank {rank} cannot start: rank 0 has not come up within {timeout:g} s") from error
    store.set(f"here/{common}/{rank}", "here")
    return dist.PrefixStore(common, store)


def _gather(store: dist.Store, name: str, missing: set[int], timeout: float) -> None:
    """Answers every question, also those of processes that died, until all of the living have heard."""
    answered: set[str] = set()
    until = time.monotonic() + timeout
    while missing:
        for rank in sorted(missing):
            if store.check([f"here/{name}/{rank}"]):
                missing.discard(rank)
            elif store.check([f"asks/{rank}"]):
                question = store.get(f"asks/{rank}").decode()
                if question not in answered:
                    store.set(f"answer/{question}", name)
                    answered.add(question)
        if missing and time.monotonic() > until:
            ranks = ", ".join(map(str, sorted(missing)))
            raise PeerLost(f"rank {ranks} has not come up within {timeout:g} s (--dist_timeout)")
        time.sleep(_POLL_SECONDS if missing else 0)
