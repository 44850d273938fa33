"""Text to rows of tokens: sources, tokenizers, an order that resumes exactly, and a fixed validation set."""

from peft_pretraining.data.config import DataConfig

__all__ = ["DataConfig"]
