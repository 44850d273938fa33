"""Text to rows of tokens: sources, tokenizers, an order that resumes exactly, and a fixed validation set."""

from peft_pretraining.data.building import build_data
from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.faults import DataError
from peft_pretraining.data.rows import Batch
from peft_pretraining.data.stream import TrainingData, Update, merge_states

__all__ = ["Batch", "DataConfig", "DataError", "TrainingData", "Update", "build_data", "merge_states"]
