"""LoRA through peft, as the baseline of full fine-tuning with a memory-efficient optimizer."""

from typing import Any

from peft_pretraining.errors import UsageError

_CLASSIFICATION, _LANGUAGE = "SEQ_CLS", "CAUSAL_LM"


def add_lora(model: Any, rank: int, *, alpha: int | None = None, classification: bool) -> Any:
    """The model with LoRA adapters of this rank in every linear layer of its body (Hu et al., arXiv 2106.09685).

    alpha: the scale is alpha / rank (default: alpha = 2 rank). All other weights are frozen, but a new
    classification head trains. Raises UsageError without peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UsageError("--lora_rank needs peft: pip install peft") from error
    kind = _CLASSIFICATION if classification else _LANGUAGE
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules="all-linear",
        task_type=kind,
    )
    return get_peft_model(model, config)
