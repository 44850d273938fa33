"""TensorBoard, which is optional: imported only where --tensorboard asks for it."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import TENSORBOARD


class TensorBoard:
    """Writes the numbers of metrics.jsonl as scalars over updates, or nothing."""

    def __init__(self, writer: Any = None) -> None:
        self._writer = writer

    def log(self, record: Mapping[str, Any]) -> None:
        """record: a line of metrics.jsonl."""
        if self._writer is None:
            return
        for name, value in record.items():
            if name != "update_step" and type(value) in (int, float):
                self._writer.add_scalar(name, value, record["update_step"])

    def close(self) -> None:
        """Brings everything to the disk."""
        if self._writer is not None:
            self._writer.close()


def start_tensorboard(wanted: bool, folder: Path, update: int) -> TensorBoard:
    """A writer into the run's folder; a run that resumes after `update` hides what was written of later updates.

    Raises UsageError where TensorBoard is asked for and is not installed.
    """
    if not wanted:
        return TensorBoard()
    if find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs the package tensorboard: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoard(SummaryWriter(str(folder / TENSORBOARD), purge_step=update + 1 if update else None))
