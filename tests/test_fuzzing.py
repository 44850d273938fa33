"""Files that come from others: any bytes give a valid result or the project's own error; nothing hangs or runs.

Each target is fed whole files of noise and damaged copies of a real file. The default run tries a few dozen of each;
`pytest -m slow tests/test_fuzzing.py` tries EXAMPLES of each.
"""

import contextlib
import copy
import gzip
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.data import DataError
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.lanes import Lane
from peft_pretraining.data.plan import Plan
from peft_pretraining.data.records import Reader
from peft_pretraining.data.shards import local_corpus
from peft_pretraining.distributed.world import session
from peft_pretraining.errors import UsageError
from peft_pretraining.model.llama import ModelConfig, build_model
from peft_pretraining.run_folder.layout import CONFIGURATION, METRICS, STATE_FOLDER, TRAINER
from peft_pretraining.run_folder.manifest import MANIFEST, DamagedCheckpoint, verify
from peft_pretraining.tracking.loss_curve import draw_loss_curve
from peft_pretraining.tracking.metrics import MetricsFile, read_metrics
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import Run, restore_or_start, run_folder
from tests.tiny_runs import MODEL, flags, train_here

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))
FEW = 15
SECONDS_AN_EXAMPLE = 20
# What a file that runs code would have to do; see https://docs.python.org/3/library/audit_events.html.
ACTIONS = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}

_watched = False
_seen: list[str] = []


def _note(event: str, _: tuple[Any, ...]) -> None:
    if _watched and event in ACTIONS:
        _seen.append(event)


sys.addaudithook(_note)


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """The body may end in an error of the project's own; it must end soon and do nothing but read."""
    global _watched

    def too_long(*_: object) -> None:
        raise AssertionError(f"still busy after {SECONDS_AN_EXAMPLE} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS_AN_EXAMPLE)
    _watched = True
    try:
        with contextlib.suppress(UsageError, DataError, DamagedCheckpoint):
            yield
    finally:
        _watched = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not _seen


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NOISE = st.binary(max_size=300) | st.sampled_from([b"", b"[" * 100_000, b"9" * 5000, b"\xff\xfe{", b"null", b"[1]"])


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON tree; of long lists to the first few items."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:4]) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def damaged_json(draw: st.DrawFn, tree: Any) -> bytes:
    """A JSON document with one to three parts of it left out, replaced or added to."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree)) or [()]))
        if not path:
            return json.dumps(draw(VALUES)).encode()
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "leave out", "add"]))
        if what == "leave out":
            del parent[path[-1]]
        elif what == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=6))] = draw(VALUES)
        else:
            parent[path[-1]] = draw(VALUES)
    return json.dumps(tree).encode()


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, most: int) -> bytes:
    """A file with some bytes among its first `most` changed, or cut, or with bytes put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, min(len(changed), most) - 1)))
        what = draw(st.sampled_from(["change", "cut", "put in"]))
        if what == "change" and changed:
            changed[place] = draw(st.integers(0, 255))
        elif what == "cut":
            del changed[place:]
        else:
            changed[place:place] = draw(st.binary(max_size=9))
    return bytes(changed)


@dataclass(frozen=True)
class Target:
    """A file that is read: damaged contents for it, and the reading."""

    contents: st.SearchStrategy[bytes]
    read: Callable[[bytes], object]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed") / "run"
    assert train_here(folder, updates=4) == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of refusals need not be printed."""
    logger.remove()
    yield
    logger.add(sys.stderr)


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    config = parse_config(["--single_gpu", *flags(tmp_path_factory.mktemp("fresh"), updates=4)])
    with session(config.parallel) as world, run_folder(config, world) as folder:
        yield restore_or_start(config, world, StopSignals(), folder)


def model_configuration(folder: Path, _: Path, __: Run) -> Target:
    def read(content: bytes) -> None:
        (folder / "model.json").write_bytes(content)
        build_model(ModelConfig(str(folder / "model.json")), "meta", 0)

    more = {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "head_dim": 16, "num_key_value_heads": 2}
    return Target(NOISE | damaged_json(MODEL) | damaged_json(MODEL | more), read)


def run_configuration(folder: Path, finished: Path, _: Run) -> Target:
    def read(content: bytes) -> None:
        (folder / CONFIGURATION).write_bytes(content)
        parse_config(["--config", str(folder / CONFIGURATION)])

    return Target(NOISE | damaged_json(json.loads((finished / CONFIGURATION).read_text())), read)


def metrics(folder: Path, finished: Path, _: Run) -> Target:
    def read(content: bytes) -> None:
        (folder / METRICS).write_bytes(content)
        file = MetricsFile(folder / METRICS)
        file.continue_after(3)
        file.close()
        draw_loss_curve(read_metrics(folder / METRICS), folder / "curve.png")

    lines = [json.loads(line) for line in (finished / METRICS).read_text().splitlines()]
    damaged = damaged_json(lines).map(lambda text: b"\n".join(json.dumps(x).encode() for x in aslist(text)) + b"\n")
    return Target(NOISE | damaged, read)


def aslist(text: bytes) -> list[Any]:
    value = json.loads(text)
    return value if isinstance(value, list) else [value]


def manifest(folder: Path, finished: Path, _: Run) -> Target:
    copied = Path(shutil.copytree(finished / "model_4", folder / "model_4"))

    def read(content: bytes) -> None:
        (copied / MANIFEST).write_bytes(content)
        verify(copied)

    return Target(NOISE | damaged_json(json.loads((copied / MANIFEST).read_text())), read)


def trainer(folder: Path, finished: Path, run: Run) -> Target:
    copied = Path(shutil.copytree(finished / "model_4", folder / "model_4"))

    def read(content: bytes) -> None:
        (copied / STATE_FOLDER / TRAINER).write_bytes(content)
        run.checkpoints.load(run.state, copied)

    return Target(NOISE | damaged_json(json.loads((copied / STATE_FOLDER / TRAINER).read_text())), read)


def tensors(name: str) -> Callable[[Path, Path, Run], Target]:
    """The headers of safetensors files; a header is JSON after its length in 8 bytes."""

    def target(folder: Path, finished: Path, run: Run) -> Target:
        copied = Path(shutil.copytree(finished / "model_4", folder / "model_4"))
        file = next(copied.glob(name))
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")

        def read(damaged: bytes) -> None:
            file.write_bytes(damaged)
            run.checkpoints.load(run.state, copied)

        headers = damaged_json(json.loads(content[8:end]))
        whole = headers.map(lambda header: len(header).to_bytes(8, "little") + header + content[end:])
        return Target(NOISE | whole | damaged_bytes(content, end), read)

    return target


def shards(ending: str, packed: Callable[[bytes], bytes]) -> Callable[[Path, Path, Run], Target]:
    def target(folder: Path, _: Path, __: Run) -> Target:
        file = folder / f"shard{ending}"
        lines = "".join(json.dumps({"text": f"document {n} of some words", "url": "a"}) + "\n" for n in range(40))

        def read(content: bytes) -> None:
            file.write_bytes(content)
            plan = Plan(local_corpus(str(file)), 1, 0, 16)
            lane = Lane(plan, 0, Reader("text", None, 10.0), DocumentParser("text", False), None)
            try:
                for _ in range(60):
                    assert lane.document().strip()
                    lane.advance()
            finally:
                lane.close()

        good = packed(lines.encode())
        return Target(NOISE | NOISE.map(packed) | damaged_bytes(good, len(good)), read)

    return target


def to_parquet(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [line.decode(errors="replace") for line in content.split(b"\n")]}), sink)
    return sink.getvalue().to_pybytes()


TARGETS: dict[str, Callable[[Path, Path, Run], Target]] = {
    "model configuration": model_configuration,
    "run.json": run_configuration,
    "metrics.jsonl": metrics,
    "manifest.json": manifest,
    "trainer.json": trainer,
    "weights": tensors("model.safetensors"),
    "optimizer state": tensors(f"{STATE_FOLDER}/*.safetensors"),
    "lines": shards(".jsonl", bytes),
    "gzip": shards(".json.gz", lambda content: gzip.compress(content, mtime=0)),
    "zstandard": shards(".jsonl.zst", lambda content: pa.compress(content, "zstd", asbytes=True)),
    "array": shards(".json", lambda content: b"[" + b",".join(content.splitlines()) + b"]"),
    "prose": shards(".txt", bytes),
    "parquet": shards(".parquet", to_parquet),
}


def fuzz(target: Target, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(content=target.contents)
    def any_bytes_are_read_or_refused(content: bytes) -> None:
        with harmless():
            target.read(content)

    any_bytes_are_read_or_refused()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name: str, finished: Path, run: Run, tmp_path: Path) -> None:
    fuzz(TARGETS[name](tmp_path, finished, run), FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_many_more_bytes_are_read_or_refused(name: str, finished: Path, run: Run, tmp_path: Path) -> None:
    fuzz(TARGETS[name](tmp_path, finished, run), EXAMPLES)


def test_the_watch_sees_code_that_is_run() -> None:
    import pickle

    with pytest.raises(AssertionError), harmless():
        pickle.loads(b"cos\ngetcwd\n(tR.")
    _seen.clear()
    assert torch.is_grad_enabled()
