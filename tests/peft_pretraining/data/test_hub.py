"""C4 from a hub on the loopback that fails in every way: nothing is lost, repeated, or asked twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.peft_pretraining.data import corpora, fake_hub

LANES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 80 kB, which a reader asks for in one range request each."""
    return corpora.write_c4(tmp_path_factory.mktemp("hub"), shards=4, per_shard=2000)


def read(
    address: str,
    out: Path,
    tokenizer: str,
    updates: int = 60,
    state: Any = None,
    launcher: tuple[str, ...] = (),
    **flags: Any,
) -> Any:
    """What a process, or several under a launcher, that streams from the hub at `address` reports (read_c4.py)."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(out / "hub-cache"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "THRIFT_CACHE": str(out / "cache"),
    }
    flags = {"tokenizer": tokenizer, "lanes": LANES, "global_batch": 32, "batch_size": 8, **flags}
    arguments = [str(out / "seen.json"), str(updates), json.dumps(flags), json.dumps(state)]
    finished = subprocess.run(
        [sys.executable, "-m", *launcher, "tests.peft_pretraining.data.read_c4", *arguments],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads((out / "seen.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a job of two processes and no fault sees, and what it asked for."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    with fake_hub.serve(folder) as (hub, address):
        seen = read(address, tmp_path_factory.mktemp("undisturbed"), tokenizer, launcher=launcher)
    return {**seen, "asked": dict(hub.asked)}


def test_a_job_asks_for_files_once_and_for_their_list_once(undisturbed: Any) -> None:
    asked = undisturbed["asked"]
    assert asked["tree"] == 1
    assert asked["info"] == 2  # what main is, and that it is there
    shards = {name: count for name, count in asked.items() if name.startswith("c4-")}
    assert shards == {
        "c4-validation.00000-of-00001.json.gz": 1,
        **{f"c4-train.{index:05d}-of-00004.json.gz": 1 for index in range(4)},
    }


def test_faults_of_the_network_change_nothing(folder: Path, tokenizer: str, undisturbed: Any, tmp_path: Path) -> None:
    plan = {
        "revision/main": [429],
        "tree": [503, "cut"],
        "c4-train.00000": ["cut", "reset"],
        "c4-train.00001": [("stall", 3), 429],
        "c4-train.00002": [500, 503],
        "c4-train.00003": [502, 504],
        "c4-validation": [500],
    }
    with fake_hub.serve(folder, plan) as (hub, address):
        seen = read(address, tmp_path, tokenizer, workers=2)
    assert not any(plan.values())  # every fault was met
    for key in ("digests", "counters", "eval_tokens", "state"):
        assert seen[key] == undisturbed[key], key


@pytest.mark.slow
def test_a_resumed_stream_goes_on_at_the_next_document(
    folder: Path, tokenizer: str, undisturbed: Any, tmp_path: Path
) -> None:
    plan: dict[str, list[Any]] = {"c4-train": [503, "cut"]}
    with fake_hub.serve(folder, plan) as (_, address):
        first = read(address, tmp_path, tokenizer, updates=7)
        second = read(address, tmp_path, tokenizer, updates=53, state=first["state"], world_size=4)
    assert first["digests"] + second["digests"] == undisturbed["digests"]


@pytest.mark.slow
def test_a_shard_that_trickles_for_ever_ends_the_run_and_is_named(folder: Path, tokenizer: str, tmp_path: Path) -> None:
    plan: dict[str, list[Any]] = {"c4-train.00002": ["trickle"] * 9}
    with fake_hub.serve(folder, plan) as (_, address):
        seen = read(address, tmp_path, tokenizer, data_timeout=6)
    assert seen["error"] == "DataError"
    assert "c4-train.00002" in seen["message"] and "--data_timeout" in seen["message"]


def test_an_unreachable_hub_is_one_message_with_the_remedies(tokenizer: str, tmp_path: Path) -> None:
    seen = read("http://127.0.0.1:9", tmp_path, tokenizer, data_timeout=2)
    assert seen["error"] == "UsageError"
    assert all(word in seen["message"] for word in ("network", "HF_ENDPOINT", "local copy", "--dataset builtin"))


@pytest.mark.slow
def test_a_hub_that_always_fails_ends_the_run_and_the_shard_is_named(
    folder: Path, tokenizer: str, tmp_path: Path
) -> None:
    plan: dict[str, list[Any]] = {"c4-train.00001": [500] * 99}
    with fake_hub.serve(folder, plan) as (_, address):
        seen = read(address, tmp_path, tokenizer, data_timeout=40, workers=1)
    assert seen["error"] == "DataError" and "c4-train.00001" in seen["message"]


@pytest.mark.slow
def test_a_long_outage_is_waited_out_at_the_same_byte(
    folder: Path, tokenizer: str, undisturbed: Any, tmp_path: Path
) -> None:
    """The hub's client gives up after 6 tries; then the reader's own retries go on."""
    plan: dict[str, list[Any]] = {"c4-train.00001": [500] * 13}
    with fake_hub.serve(folder, plan) as (_, address):
        seen = read(address, tmp_path, tokenizer, workers=1)
    assert seen["digests"] == undisturbed["digests"]
