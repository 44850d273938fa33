"""Flags of the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import flag

if TYPE_CHECKING:
    import torch

_DTYPES = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model, and how it is computed."""

    _argument_group_name: ClassVar[str] = "model"

    model_config: str | None = flag(
        None,
        help="JSON file with the shape of the model, such as configs/llama_60m.json; needed without --init_from",
    )
    init_from: str | None = flag(
        None,
        metavar="NAME_OR_PATH",
        help="start from the weights of a LLaMA: a Hugging Face folder, a run's checkpoint or a name on the hub; its "
        "shape and its tokenizer are taken too",
    )
    use_hf_model: bool = flag(
        False, help="transformers' own forward pass, with attention mask and full logits (slower)"
    )
    activation_checkpointing: bool = flag(
        False, help="keep the input of each layer only and run the layer again in the backward pass"
    )
    compile_model: bool = flag(
        False, help="run decoder layers and loss through torch.compile: faster, after some compiling"
    )
    dtype: str = flag("bfloat16", help="of weights, activations and gradients: bfloat16 (bf16) or float32 (fp32)")

    def __post_init__(self) -> None:
        if self.model_config is None and self.init_from is None:
            raise UsageError("--model_config is required: a JSON file such as configs/llama_60m.json, or --init_from")
        if self.dtype in ("float16", "fp16", "half"):
            raise UsageError(
                f"--dtype {self.dtype}: gradients underflow in fp16, whose smallest number is 6e-8, and "
                "nothing here scales the loss. Use --dtype bfloat16"
            )
        if self.dtype not in _DTYPES:
            raise UsageError(f"--dtype {self.dtype}: unknown. Use one of {', '.join(_DTYPES)}")
        if self.use_hf_model and self.compile_model:
            raise UsageError("--compile_model does nothing for --use_hf_model. Drop one of them")

    @property
    def shape_file(self) -> Path:
        """The JSON file with the shape of the model, or the folder that has it. Raises UsageError."""
        if self.model_config is not None:
            return Path(self.model_config)
        from peft_pretraining.model.pretrained import pretrained_folder  # takes seconds, and flags are read without it

        return pretrained_folder(self.init_from or "")

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The dtype of weights, activations and gradients."""
        import torch  # takes seconds, and flags are read without it

        return getattr(torch, _DTYPES[self.dtype])
