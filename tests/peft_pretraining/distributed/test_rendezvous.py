"""Processes that meet in a store that earlier ones have used."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from peft_pretraining.distributed.rendezvous import rendezvous
from peft_pretraining.distributed.watchdog import PeerLost


def meet_all(store: dist.Store, ranks: int) -> list[dist.Store]:
    """Every rank in a thread of its own, rank 0 last, so that it finds what earlier processes left."""
    found: dict[int, dist.Store] = {}

    def join(rank: int) -> None:
        found[rank] = rendezvous(store, rank, ranks, timeout=20)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return [found[rank] for rank in range(ranks)]


def test_every_attempt_has_a_part_of_its_own() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    store.set("asks/1", b"of a process that died")
    for attempt in range(3):
        parts = meet_all(store, 3)
        assert not parts[1].check(["address"])
        parts[0].set("address", str(attempt))
        assert [part.get("address") for part in parts] == [str(attempt).encode()] * 3


def test_who_does_not_come_is_named() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.3))
    with pytest.raises(PeerLost, match="rank 1, 2 has not come up"):
        rendezvous(store, 0, 3, timeout=0.3)
    with pytest.raises(PeerLost, match="rank 0 has not come up"):
        rendezvous(dist.PrefixStore("elsewhere", store), 1, 3, timeout=0.3)
