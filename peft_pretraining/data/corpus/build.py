"""Makes the corpus: reads the sources prose first, drops copies, splits, and writes C4's folder layout."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from peft_pretraining.atomic_write import replacing
from peft_pretraining.data.c4_files import write_shard
from peft_pretraining.data.corpus.packages import Unavailable, fetch, files
from peft_pretraining.data.corpus.sources import SOURCES, Document, by_rank
from peft_pretraining.data.near_duplicates import SeenTexts, split_apart
from peft_pretraining.errors import UsageError

_LEAST_CHARACTERS = 200
_SHARDS = 32
_HELD_OUT_OF = 100
MANIFEST = "manifest.json"


@dataclass
class Taken:
    """What a source gave: documents kept, and characters of texts that were short, exact copies or near copies."""

    archive: Path | None = None
    documents: list[Document] = field(default_factory=list)
    short: int = 0
    copies: int = 0
    near_copies: int = 0

    @property
    def bytes(self) -> int:
        return sum(len(text.encode()) for _, text in self.documents)


def build(output: Path, names: Sequence[str], out_of_domain: str | None, downloads: Path, optional: bool) -> Path:
    """Writes the corpus to `output`, which must not exist. Returns its manifest's path. Raises UsageError.

    optional: a source that cannot be had here is left out with a warning instead of ending the work.
    """
    if output.exists():
        raise UsageError(f"--output {output} exists already: give a new folder")
    archives = _fetch_all(names, downloads, optional)
    taken = _take(archives, out_of_domain)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial:
        partial.mkdir()
        written = [*_write(partial, taken, out_of_domain), *_write_tokenizer(partial, downloads)]
        manifest = _manifest(taken, out_of_domain, written)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return output / MANIFEST


def _fetch_all(names: Sequence[str], downloads: Path, optional: bool) -> dict[str, Path | None]:
    archives: dict[str, Path | None] = {}
    for name in by_rank(names):
        source = SOURCES[name]
        try:
            archives[name] = fetch(source.registry, source.package, downloads) if source.registry else None
        except Unavailable as error:
            if not optional:
                raise UsageError(f"--sources {name}: {error}; leave it out, or see to it that it works") from error
            logger.warning("{} ({} of {}) is left out: {}", name, source.package, source.registry, error)
    if not archives:
        raise UsageError("--sources: none of them can be had here; is there a network?")
    return archives


def _take(archives: dict[str, Path | None], out_of_domain: str | None) -> dict[str, Taken]:
    """The documents of every source; the one that is held out comes first, so that the others lack its texts."""
    exact: set[bytes] = set()
    seen = SeenTexts()
    taken: dict[str, Taken] = {}
    for name in sorted(archives, key=lambda name: name != out_of_domain):
        taken[name] = _take_from(name, archives[name], exact, seen)
        found = taken[name]
        logger.info(
            "{}: {:,} documents, {:.1f} MB; left out {:,} short ones, {:,} copies, {:,} near copies",
            name,
            len(found.documents),
            found.bytes / 1e6,
            found.short,
            found.copies,
            found.near_copies,
        )
    return taken


def _take_from(name: str, archive: Path | None, exact: set[bytes], seen: SeenTexts) -> Taken:
    found, size = Taken(archive), 0
    for place, text in SOURCES[name].read(archive or Path()):
        text = text.strip()
        digest = hashlib.blake2b(" ".join(text.split()).encode(errors="replace"), digest_size=16).digest()
        if len(text) < _LEAST_CHARACTERS or not _encodes(text):
            found.short += 1
        elif digest in exact:
            found.copies += 1
        elif seen.is_near_copy(text):
            found.near_copies += 1
        else:
            size += len(text)
            if size > SOURCES[name].most:
                break
            exact.add(digest)
            found.documents.append((f"{name}/{place}", text))
    return found


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _write(folder: Path, taken: dict[str, Taken], out_of_domain: str | None) -> list[Path]:
    """Shards of all documents mixed, a validation part that shares no sequence with them, the held-out source."""
    mixed = [document for name, found in taken.items() if name != out_of_domain for document in found.documents]
    mixed.sort(key=lambda document: hashlib.sha256(document[1].encode()).digest())
    held_out = split_apart([text for _, text in mixed], _HELD_OUT_OF)
    train = [document for document, held in zip(mixed, held_out, strict=True) if not held]
    validation = [document for document, held in zip(mixed, held_out, strict=True) if held]
    parts = {f"en/c4-train.{i:05d}-of-{_SHARDS:05d}.json.gz": train[i::_SHARDS] for i in range(_SHARDS)}
    parts["en/c4-validation.00000-of-00001.json.gz"] = validation
    if out_of_domain in taken:
        parts[f"{out_of_domain}/c4-validation.00000-of-00001.json.gz"] = taken[out_of_domain].documents
    return [write_shard(folder / name, documents) for name, documents in parts.items()]


def _write_tokenizer(folder: Path, downloads: Path) -> list[Path]:
    """Mistral's first tokenizer, of 32,000 ids as LLaMA's, under Apache-2.0; none where it cannot be had."""
    path = folder / "tokenizers" / "mistral-32000" / "tokenizer.model"
    try:
        archive = fetch("pypi", "mistral-common", downloads)
    except Unavailable as error:
        logger.warning("the tokenizer of mistral-common (pypi) is left out: {}", error)
        return []
    path.parent.mkdir(parents=True)
    for _, content in files(archive, r"mistral_common/data/tokenizer\.model\.v1"):
        path.write_bytes(content)
    return [path] if path.exists() else []


def _manifest(taken: dict[str, Taken], out_of_domain: str | None, written: Sequence[Path]) -> dict[str, Any]:
    sources = {
        name: {
            "package": SOURCES[name].package or "installed packages",
            "registry": SOURCES[name].registry or "none",
            "archive": found.archive.name if found.archive else None,
            "sha256": _sha256(found.archive) if found.archive else None,
            "licence": SOURCES[name].licence,
            "documents": len(found.documents),
            "bytes": found.bytes,
            "left_out": {"short": found.short, "copies": found.copies, "near_copies": found.near_copies},
            "use": "out-of-domain validation" if name == out_of_domain else "training and validation",
        }
        for name, found in taken.items()
    }
    root = written[0].parent.parent
    files = {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in written
    }
    return {"bytes": sum(found.bytes for found in taken.values()), "sources": sources, "files": files}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
