"""The manifest of a checkpoint: size and SHA-256 of every file, so that a damaged one is noticed."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


class DamagedCheckpoint(Exception):
    """A checkpoint folder that is not what was written; the message names the file."""


def verify(checkpoint: Path) -> None:
    """Compares a checkpoint with its manifest. Raises DamagedCheckpoint naming a file that differs."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"its {MANIFEST} cannot be read ({type(error).__name__})") from error
    present = {str(path.relative_to(checkpoint)): path for path in _files(checkpoint)}
    for name, (size, _) in listed.items():
        if name not in present:
            raise DamagedCheckpoint(f"{name} is missing")
        if present[name].stat().st_size != size:
            raise DamagedCheckpoint(f"{name} has {present[name].stat().st_size} bytes instead of {size}")
    for name in present.keys() - listed.keys():
        # Readers take every such file of the folder, so a stray one would become part of the state.
        if name.endswith((".safetensors", ".json")):
            raise DamagedCheckpoint(f"{name} is not in the manifest")
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(listed, pool.map(lambda name: _sha256(present[name]), listed), strict=True))
    for name, (_, digest) in listed.items():
        if digests[name] != digest:
            raise DamagedCheckpoint(f"the checksum of {name} differs")


def write_manifest(checkpoint: Path) -> None:
    """Brings every file to the disk, and the manifest that names it."""
    paths = sorted(_files(checkpoint))
    entries = {}
    with ThreadPoolExecutor() as pool:
        for path, digest in zip(paths, pool.map(_sync_and_hash, paths), strict=True):
            entries[str(path.relative_to(checkpoint))] = {"bytes": path.stat().st_size, "sha256": digest}
    manifest = checkpoint / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")
    _sync_and_hash(manifest)
    for directory in {path.parent for path in paths} | {checkpoint}:
        sync(directory)


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / MANIFEST]


def _sync_and_hash(path: Path) -> str:
    sync(path)
    return _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flushes a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
