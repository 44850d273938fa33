"""English prose that every installation has: the documentation of the installed Python packages.

Docstrings are cut out of the source files with `ast`, so nothing is imported or run, and kept as C4-format shards. Many
are near copies of one another: the validation part shares no sequence of 13 words with the training part.
"""

import ast
import gc
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from filelock import FileLock
from loguru import logger
from tqdm import tqdm

from peft_pretraining.atomic_write import replacing
from peft_pretraining.data.c4_files import write_shard
from peft_pretraining.data.cache import cache_folder
from peft_pretraining.data.holdout import HELD_OUT_OF
from peft_pretraining.data.near_duplicates import split_apart
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.modes import follow_umask

PACKAGES = ("torch", "transformers", "numpy", "pandas", "datasets", "huggingface_hub")
_LEAST_CHARACTERS = 200
_TRAIN_SHARDS = 16
_FORMAT = 2  # part of the cache key: raise it when the documents change


def ensure_corpus() -> Path:
    """The folder of the corpus in C4's layout (`en/c4-train.*`, `en/c4-validation.*`), built on first use.

    Safe when several processes call it at once: one builds, the others wait. Raises UsageError where it cannot
    be written.
    """
    folder = cache_folder() / f"builtin-{corpus_key()}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _build(folder)
    except OSError as error:
        raise UsageError(
            f"--dataset builtin cannot be kept in {folder}: {error}; set THRIFT_CACHE to a folder with 100 MB free"
        ) from error
    return folder


def corpus_key() -> str:
    """Names what the corpus is made of: versions of the packages and of Python, and the way of building."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _package_folder(name)}
    described = [_FORMAT, HELD_OUT_OF, platform.python_version(), sorted(versions.items())]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]


def texts(folder: Path) -> Iterator[str]:
    """The training documents of a built corpus."""
    for shard in sorted(folder.glob("en/c4-train.*")):
        with gzip.open(shard, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _libraries() -> list[Path]:
    """The folder of the standard library."""
    return [Path(sysconfig.get_paths()["stdlib"])]


def _sources() -> list[tuple[Path, Path]]:
    """(file, the folder its package lies in) of every source file to read."""
    roots = [folder for name in PACKAGES if (folder := _package_folder(name))]
    found = [(path, root.parent) for root in roots for path in root.rglob("*.py")]
    for library in _libraries():
        for path in library.rglob("*.py"):
            if not {"site-packages", "dist-packages", "test", "tests"} & set(path.relative_to(library).parts):
                found.append((path, library))
    return sorted(found)


def _docstrings(source: tuple[Path, Path]) -> list[tuple[str, str]]:
    """(dotted place, docstring) of the module, classes and functions of one file."""
    path, root = source
    gc.disable()  # the collector would take half of the time; the trees hold no cycles
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = path.read_bytes()
            tree = ast.parse(data) if b'"""' in data or b"'''" in data else ast.Module([], [])
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    name = path.relative_to(root).as_posix()
    found = []
    for node in _documented(tree):
        text = ast.get_docstring(node) or ""
        if len(text) >= _LEAST_CHARACTERS and _encodes(text):
            found.append((f"{name}#{getattr(node, 'name', '')}", text))
    return found


def _documented(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Nodes that can have a docstring. Only statements are searched, which takes a third of `ast.walk`'s time."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for part in ("body", "orelse", "finalbody", "handlers"):
        children = getattr(node, part, ())
        for child in children if isinstance(children, list) else ():
            if isinstance(child, ast.stmt | ast.ExceptHandler):
                yield from _documented(child)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def docstrings() -> list[tuple[str, str]]:
    """(place, text) of every distinct docstring, in an order that depends on the texts alone."""
    sources = _sources()
    processes = min(os.cpu_count() or 1, 16)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    distinct: dict[str, str] = {}
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        found: Iterable[list[tuple[str, str]]] = pool.map(_docstrings, sources, chunksize=32)
        progress = tqdm(
            found, total=len(sources), desc="reading documentation", unit=" files", disable=None, leave=False
        )
        for documents in progress:
            for place, text in documents:
                distinct.setdefault(text, place)
    order = sorted(distinct, key=lambda text: hashlib.sha256(text.encode()).digest())
    return [(distinct[text], text) for text in order]


def _build(folder: Path) -> None:
    started = time.monotonic()
    logger.info("building the builtin corpus (once for these package versions) in {}", folder)
    documents = docstrings()
    with replacing(folder) as partial:
        partial.mkdir()
        apart = split_apart([text for _, text in documents], HELD_OUT_OF)
        train = [document for document, held in zip(documents, apart, strict=True) if not held]
        held_out = [document for document, held in zip(documents, apart, strict=True) if held]
        for index in range(_TRAIN_SHARDS):
            name = f"en/c4-train.{index:05d}-of-{_TRAIN_SHARDS:05d}.json.gz"
            write_shard(partial / name, train[index::_TRAIN_SHARDS])
        write_shard(partial / "en/c4-validation.00000-of-00001.json.gz", held_out)
        follow_umask(partial)
    logger.info(
        "built the builtin corpus: {} documents, {:.1f} MB of text, in {:.0f} s",
        len(documents),
        sum(len(text.encode()) for _, text in documents) / 1e6,
        time.monotonic() - started,
    )
