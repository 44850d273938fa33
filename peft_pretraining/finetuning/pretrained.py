"""Models and tokenizers to start from: a folder, a run's checkpoint or a name on the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft_pretraining.errors import UsageError


def load_classifier(name: str, labels: int, regression: bool) -> tuple[Any, Any]:
    """Model with a new head of this many labels, float32, and its tokenizer. Raises UsageError."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    def load(path: str) -> Any:
        config = AutoConfig.from_pretrained(path, num_labels=labels)
        if regression:
            config.problem_type = "regression"
        return AutoModelForSequenceClassification.from_pretrained(path, config=config, dtype="float32")

    return _load(name, load)


def load_language_model(name: str, dtype: str) -> tuple[Any, Any]:
    """Language model in this dtype, and its tokenizer. Raises UsageError."""
    from transformers import AutoModelForCausalLM

    return _load(name, lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=dtype))


def _load(name: str, load: Callable[[str], Any]) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    path = str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(path), load(path)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"--model_name_or_path {name}: it cannot be loaded ({str(error).splitlines()[0]})") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UsageError(f"--model_name_or_path {name}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"--model_name_or_path {name}: its tokenizer has {len(tokenizer):,} tokens, its embedding {rows:,} rows"
        )
    return model, tokenizer
