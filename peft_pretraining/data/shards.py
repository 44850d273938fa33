"""The files a corpus is made of: found once, in one order, with a fingerprint for resumed runs."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from peft_pretraining.data.holdout import HELD_OUT_OF, Document, is_held_out
from peft_pretraining.data.splits import split
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import CONFIGURATION

_KINDS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".txt": "text", ".bin": "ids"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
FORMATS = "json, jsonl, ndjson or txt (also with .gz or .zst), parquet, or bin (token ids)"
_NAMED_AT_MOST = 5


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
        """json (a record a line), text, parquet, ids (token ids), or None for other files, by the end of the name."""
        name = Path(self.name)
        return _KINDS.get(Path(name.stem).suffix if self.compression else name.suffix)


@dataclass(frozen=True)
class Corpus:
    """Shards to train on and to evaluate on.

    Without validation shards one training document in `holdout` is held out, chosen by its content (0: none is).
    `filesystem` reads hf:// paths and carries the hub's answers about them, so that no other process asks again.
    """

    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    filesystem: Any = None
    revision: str = ""
    holdout: int = HELD_OUT_OF

    @property
    def hold_out(self) -> bool:
        """Whether documents of the training shards are held out."""
        return not self.validation and self.holdout > 0

    def trains_on(self, text: Document) -> bool:
        """Whether a document of a training shard is trained on."""
        return not (self.hold_out and is_held_out(text, self.holdout))

    def validates_on(self, text: Document) -> bool:
        """Whether a document of a validation shard, or of a training shard where there is none, is held out."""
        return bool(self.validation) or is_held_out(text, self.holdout)

    @property
    def fingerprint(self) -> str:
        """Changes when a name, a size or the revision of any shard does."""
        listed = [[(shard.name, shard.size) for shard in part] for part in (self.train, self.validation)]
        return hashlib.sha256(json.dumps([self.revision, listed]).encode()).hexdigest()[:16]


def local_corpus(dataset: str) -> Corpus:
    """The corpus of a file, a folder or a glob. Raises UsageError, saying what to give instead."""
    path = Path(dataset).expanduser()
    if path.is_file():
        return Corpus((_shard(dataset, path.parent, path),), ())
    if path.is_dir():
        root = path / "en" if any(path.glob("en/c4-train.*")) else path
        found = list(_data_files(root))
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
    return _split(dataset, [_shard(dataset, root, each) for each in found])


def name_some(names: Iterable[str]) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _data_files(root: Path) -> Iterable[Path]:
    """Files by the ends of their names, in order; without hidden ones and without what runs have written."""
    for folder, folders, files in os.walk(root):
        inside = Path(folder) != root
        if inside and CONFIGURATION in files:  # the folder of a run
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not _hidden(name))
        found = (Path(folder) / name for name in files if not _hidden(name) and _kind(Path(name)))
        yield from sorted(each for each in found if each.is_file())


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _kind(path: Path) -> str | None:
    return Shard(str(path), path.name, 0).kind


def _shard(dataset: str, root: Path, path: Path) -> Shard:
    shard = Shard(str(path), path.relative_to(root).as_posix(), path.stat().st_size)
    if shard.kind is None:
        raise UsageError(f"--dataset {dataset}: {path} has an unknown ending; files must be {FORMATS}")
    if not os.access(path, os.R_OK):
        raise UsageError(f"--dataset {dataset}: {path} cannot be read: check its permissions")
    return shard


def _split(dataset: str, shards: Sequence[Shard]) -> Corpus:
    """Training and validation by name, as `c4-train.*` beside `c4-validation.*`; says what is left out."""
    by_name = {shard.name: shard for shard in sorted(shards, key=lambda shard: shard.name)}
    train, validation, left_out = split(list(by_name))
    if not train:
        if not left_out and validation:  # nothing but validation files: they are the data
            train, validation = validation, []
        else:
            raise UsageError(
                f"--dataset {dataset}: no file to train on, all are named as test or validation files: "
                f"{name_some(by_name)}; give the path of a file, or rename it"
            )
    if left_out:
        logger.warning(
            "{}: {} of {} files are left out, by their names: {}",
            dataset,
            len(left_out),
            len(by_name),
            name_some(left_out),
        )
    return Corpus(tuple(by_name[name] for name in train), tuple(by_name[name] for name in validation))


_NUMBERED = re.compile(r"(.+?)[-._]\d+[-._]of[-._](\d+)(?:\D.*)?")


def are_parts_of_one(shards: Sequence[Shard]) -> bool:
    """Whether the names say that all shards are parts of one data set, `x-00000-of-00008` and so on."""
    matches = [_NUMBERED.fullmatch(shard.name) for shard in shards]
    return all(matches) and len({match.groups() for match in matches if match}) == 1
