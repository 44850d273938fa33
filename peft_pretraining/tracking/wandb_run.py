"""Weights & Biases, which is optional: imported only where --wandb_mode asks for it."""

import configparser
import netrc
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loguru import logger

from peft_pretraining.atomic_write import write_atomically
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import WANDB_ID
from peft_pretraining.tracking.config import LoggingConfig

_PROJECT = "thrift-llama"
_URL = "https://api.wandb.ai"
_ANSWER_SECONDS = 5.0
# What people set in the environment, wandb's own older names among it.
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
_MODES |= dict.fromkeys(("disabled", "false", "0", "no", "off", "none"), "disabled")
_MODES |= dict.fromkeys(("", "true", "1", "yes", "on", "auto"), "auto")


class Tracker:
    """Sends records to wandb, or nowhere."""

    def __init__(self, run: Any = None) -> None:
        self._run = run

    def log(self, record: Mapping[str, Any]) -> None:
        """record: a line of metrics.jsonl."""
        if self._run is not None:
            self._run.log(dict(record))

    def finish(self, exit_status: int) -> None:
        """Waits until everything is sent or stored."""
        if self._run is not None:
            self._run.finish(exit_code=exit_status)


def start_tracker(settings: LoggingConfig, flags: Mapping[str, Any], folder: Path) -> Tracker:
    """A tracker as --wandb_mode says; a run that resumes goes on in the same wandb run.

    flags: the run's configuration, for wandb to show. folder: the run's. Raises UsageError where wandb is asked for by
    name and is not installed or does not start.
    """
    asked = settings.wandb_mode
    mode = _automatic_mode() if asked == "auto" else asked
    if mode == "disabled":
        return Tracker()
    if find_spec("wandb") is None:
        raise UsageError(f"--wandb_mode {mode} needs the package wandb: pip install wandb")
    try:
        return Tracker(_start(settings, flags, folder, mode))
    except _failures() as error:
        if asked != "auto" or mode == "offline":
            raise UsageError(f"--wandb_mode {mode}: wandb does not start ({error}); try offline or disabled") from error
        logger.warning("wandb is offline: it does not start ({})", " ".join(str(error).split()))
        return Tracker(_start(settings, flags, folder, "offline"))


def _start(settings: LoggingConfig, flags: Mapping[str, Any], folder: Path, mode: str) -> Any:
    import wandb

    with _only_our_mode(mode):
        run = wandb.init(
            project=settings.wandb_project or _PROJECT,
            name=settings.wandb_run_name or settings.name,
            job_type=settings.wandb_job_type,
            tags=settings.tag_list() or None,
            config=dict(flags),
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            id=_run_id(folder),
            # Offline, wandb warns that it does not look for an earlier part; `wandb sync` joins the parts by their id.
            resume="allow" if mode == "online" else None,
        )
    _protect_forked_workers()
    run.define_metric("update_step")
    run.define_metric("*", step_metric="update_step")
    return run


def _failures() -> tuple[type[Exception], ...]:
    import wandb

    return wandb.Error, ValueError, OSError  # values that wandb's settings refuse are ValueErrors of pydantic


@contextmanager
def _only_our_mode(mode: str) -> Iterator[None]:
    """While wandb reads the environment, its WANDB_MODE is one that wandb knows."""
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_MODE"]
        else:
            os.environ["WANDB_MODE"] = before


@cache
def _protect_forked_workers() -> None:
    """Removes wandb's import hook from processes that are forked from now on.

    The hook reports imports to a thread of this process. In a forked data worker there is no such thread, and the
    first import of a library that wandb counts would raise ForkedError.
    """
    os.register_at_fork(after_in_child=_remove_import_hooks)


def _remove_import_hooks() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("wandb.")]


def _automatic_mode() -> str:
    """What `auto` means here; says in one line why wandb is not online."""
    mode = _environment_mode()
    if mode == "disabled":
        logger.info("wandb is off: the environment says so; metrics.jsonl in the run folder has everything")
        return mode
    if mode == "auto" and not _has_credentials():
        logger.info("wandb is off: no credentials (wandb login); metrics.jsonl in the run folder has everything")
        return "disabled"
    if find_spec("wandb") is None:
        logger.info("wandb is off: it is not installed (pip install wandb)")
        return "disabled"
    if mode == "auto":
        mode = "online" if _answers(_base_url()) else "offline"
        if mode == "offline":
            logger.warning("wandb is offline: {} does not answer; `wandb sync` sends the run later", _base_url())
    return mode


def _environment_mode() -> str:
    """online, offline, disabled, or auto where the environment does not choose."""
    said = os.environ.get("WANDB_MODE", "")
    mode = _MODES.get(said.strip().lower())
    if mode is None:
        raise UsageError(f"WANDB_MODE={said} in the environment: set online, offline or disabled, or give --wandb_mode")
    off = os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1", "yes", "on")
    return "disabled" if off else mode


def _base_url() -> str:
    """The server: of the environment, of `wandb login --host`, or the public one."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser()
    try:
        parser.read(folder / "settings", encoding="utf-8")
        return parser.get("default", "base_url", fallback=_URL)
    except (configparser.Error, OSError, UnicodeDecodeError):
        return _URL


def _has_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(_base_url()).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Whether a server answers at all, through the proxies of the environment if there are any."""
    try:
        urllib.request.urlopen(url, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _run_id(folder: Path) -> str:
    file = folder / WANDB_ID
    if not file.exists():
        write_atomically(file, os.urandom(4).hex())
    return file.read_text(encoding="utf-8").strip()
