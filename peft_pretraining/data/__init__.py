"""Text to rows of tokens: sources, tokenizers, an order that resumes exactly, and a fixed validation set."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_pretraining.data.building import build_data
    from peft_pretraining.data.config import DataConfig
    from peft_pretraining.data.faults import DataError
    from peft_pretraining.data.rows import Batch
    from peft_pretraining.data.stream import TrainingData, Update, merge_states

__all__ = ["Batch", "DataConfig", "DataError", "TrainingData", "Update", "build_data", "merge_states"]

_HOMES = {
    "build_data": "building",
    "DataConfig": "config",
    "DataError": "faults",
    "Batch": "rows",
    "TrainingData": "stream",
    "Update": "stream",
    "merge_states": "stream",
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: flags of the data are read without torch, which takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
