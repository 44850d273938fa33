"""Weights & Biases, which is optional: imported only where --wandb_mode asks for it."""

import netrc
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from peft_pretraining.errors import UsageError

if TYPE_CHECKING:
    from peft_pretraining.flags.fields import RunConfig

_PROJECT = "thrift-llama"
_HOST = "api.wandb.ai"
_RUN_ID = "wandb_id"


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


def start_tracker(config: "RunConfig", folder: Path) -> Tracker:
    """A tracker as --wandb_mode says; a run that resumes goes on in the same wandb run.

    Raises UsageError where wandb is asked for by name and is not installed or does not start.
    """
    settings = config.logging
    mode = settings.wandb_mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_credentials() else "disabled")
        if mode == "disabled":
            logger.info("wandb is off: no credentials (wandb login); metrics.jsonl in the run folder has everything")
        elif find_spec("wandb") is None:
            logger.info("wandb is off: it is not installed (pip install wandb)")
            mode = "disabled"
    if mode == "disabled":
        return Tracker()
    if find_spec("wandb") is None:
        raise UsageError(f"--wandb_mode {mode} needs the package wandb: pip install wandb")
    import wandb

    try:
        run = wandb.init(
            project=settings.wandb_project or _PROJECT,
            name=settings.wandb_run_name or settings.name,
            job_type=settings.wandb_job_type,
            tags=[tag.strip() for tag in settings.tags.split(",")] if settings.tags else None,
            config=config.to_dict(),
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            id=_run_id(folder),
            resume="allow",
        )
    except wandb.Error as error:
        raise UsageError(f"--wandb_mode {mode}: wandb does not start ({error}); try offline or disabled") from error
    run.define_metric("update_step")
    run.define_metric("*", step_metric="update_step")
    return Tracker(run)


def _has_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(folder: Path) -> str:
    file = folder / _RUN_ID
    if not file.exists():
        file.write_text(os.urandom(4).hex(), encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
