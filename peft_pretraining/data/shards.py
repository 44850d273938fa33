"""The files a corpus is made of: found once, in one order, with a fingerprint for resumed runs."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from peft_pretraining.errors import UsageError

_KINDS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".txt": "text"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_VALIDATION_WORDS = frozenset({"validation", "valid", "val", "dev"})
FORMATS = "json, jsonl, ndjson or txt (also with .gz or .zst), parquet"


@dataclass(frozen=True)
class Shard:
    """A file of documents of `size` bytes. `path` is local or hf://; `name` is the same wherever that lies."""

    path: str
    name: str
    size: int

    @property
    def remote(self) -> bool:
        return self.path.startswith("hf://")

    @property
    def compression(self) -> str | None:
        """gzip, zstd or None, by the end of the name."""
        return _COMPRESSIONS.get(Path(self.name).suffix)

    @property
    def kind(self) -> str | None:
        """json (a record a line), text, parquet, or None for other files, by the end of the name."""
        name = Path(self.name)
        return _KINDS.get(Path(name.stem).suffix if self.compression else name.suffix)


@dataclass(frozen=True)
class Corpus:
    """Shards to train on and to evaluate on.

    Without validation shards a fixed share of the training documents is held out by their content. `filesystem`
    reads hf:// paths and carries the hub's answers about them, so that no other process asks again.
    """

    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    filesystem: Any = None
    revision: str = ""

    @property
    def hold_out(self) -> bool:
        return not self.validation

    @property
    def fingerprint(self) -> str:
        """Changes when a name, a size or the revision of any shard does."""
        listed = [[(shard.name, shard.size) for shard in part] for part in (self.train, self.validation)]
        return hashlib.sha256(json.dumps([self.revision, listed]).encode()).hexdigest()[:16]


def local_corpus(dataset: str) -> Corpus:
    """The corpus of a file, a folder or a glob. Raises UsageError, saying what to give instead."""
    path = Path(dataset).expanduser()
    if path.is_file():
        root, found = path.parent, [path]
    elif path.is_dir():
        root = path / "en" if any(path.glob("en/c4-train.*")) else path
        found = sorted(each for each in root.rglob("*") if each.is_file() and _kind(each))
        if not found:
            raise UsageError(f"--dataset {dataset}: the folder holds no data; files must be {FORMATS}")
    elif glob.has_magic(dataset):
        found = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if os.path.isfile(each))
        if not found:
            raise UsageError(f"--dataset {dataset}: no file matches this pattern")
        root = Path(os.path.commonpath([each.parent for each in found]))
    else:
        raise UsageError(
            f"--dataset {dataset}: no such file or folder; give c4, builtin, or a path or glob of {FORMATS} files"
        )
    return _split(dataset, _existing(dataset, root, found))


def _kind(path: Path) -> str | None:
    return Shard(str(path), path.name, 0).kind


def _existing(dataset: str, root: Path, found: Sequence[Path]) -> list[Shard]:
    shards = []
    for path in found:
        shard = Shard(str(path), path.relative_to(root).as_posix(), path.stat().st_size)
        if shard.kind is None:
            raise UsageError(f"--dataset {dataset}: {path} has an unknown ending; files must be {FORMATS}")
        if not os.access(path, os.R_OK):
            raise UsageError(f"--dataset {dataset}: {path} cannot be read: check its permissions")
        if shard.size:
            shards.append(shard)
        else:
            logger.warning("{} is empty and left out", path)
    if not shards:
        raise UsageError(f"--dataset {dataset}: nothing to read, every file is empty")
    return shards


def _split(dataset: str, shards: Sequence[Shard]) -> Corpus:
    """Training and validation by the words in the names, as `c4-train.*` beside `c4-validation.*`."""
    words = {shard: set(re.split(r"[^a-z]+", shard.name.lower())) for shard in shards}
    validation = tuple(shard for shard in shards if words[shard] & _VALIDATION_WORDS)
    named = tuple(shard for shard in shards if "train" in words[shard])
    train = named or tuple(shard for shard in shards if shard not in validation)
    if not train:
        train, validation = validation, ()
    left_out = len(shards) - len(train) - len(validation)
    if left_out:
        logger.info("{}: {} files named neither train nor validation are left out", dataset, left_out)
    return Corpus(train, validation)
