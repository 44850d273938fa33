"""The model: transformers' LLaMA with a forward pass made for pretraining."""

import torch
from loguru import logger
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from peft_pretraining.errors import UsageError
from peft_pretraining.model.attention import ATTENTION
from peft_pretraining.model.config import ModelConfig
from peft_pretraining.model.loss import linear_cross_entropy
from peft_pretraining.model.padding import token_layout
from peft_pretraining.model.pretrained import PretrainedWeights, pretrained_folder
from peft_pretraining.model.shape import load_llama_config


class PretrainingLlama(nn.Module):
    """A LLaMA whose forward pass is the pretraining loss; parameter names are those of LlamaForCausalLM.

    `config` is the LlamaConfig. `document_end`: the id that ends a document, where tokens shall attend to none of
    the documents before their own; None where a row is one text to them. Decoder layers are `model.layers`; each is
    compiled by itself under `compiled`, so that gradients arrive layer by layer and FSDP2 can shard each layer.
    """

    def __init__(self, llama: LlamaForCausalLM, *, plain: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.config: LlamaConfig = llama.config
        self.model = llama.model
        self.lm_head = llama.lm_head
        self.plain = plain
        self.compiled = compiled
        self.document_end: int | None = None
        if compiled:
            for layer in self.model.layers:
                layer.compile(dynamic=True)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Sum of the cross-entropies of all next tokens, 0-D fp32: `(lengths - 1).clamp_min(0).sum()` terms.

        input_ids: (rows, length) int64, right padded. lengths: (rows,) int64, the number of real tokens of
        each row, in 0..length. Both are best left on the CPU: counting there spares a wait for the
        accelerator.
        """
        device = self.lm_head.weight.device
        if self.plain:
            return self._plain_loss(input_ids.to(device), lengths.to(device))
        layout = token_layout(lengths, input_ids.shape[1])
        flat_ids = input_ids.flatten().to(device, non_blocking=True)
        layout = layout.to(device)
        hidden = self.model(
            flat_ids[layout.origin][None],
            position_ids=layout.positions[None],
            use_cache=False,
            origin=layout.origin,
            batch_shape=tuple(input_ids.shape),
            documents=None if self.document_end is None else _documents(input_ids, self.document_end).to(device),
        ).last_hidden_state[0]
        labels = flat_ids[layout.targets]
        scored = hidden[layout.scored]
        return linear_cross_entropy(scored, self.lm_head.weight, labels, compiled=self.compiled)

    def _plain_loss(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = places < lengths[:, None]
        hidden = self.model(input_ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        logits = self.lm_head(hidden).float()
        labels = input_ids.masked_fill(~mask, -100)[:, 1:]
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")


def _documents(input_ids: Tensor, end: int) -> Tensor:
    """The number of the document in its row that each token belongs to, (rows, length); `end` is a document's last."""
    ends = (input_ids == end).int()
    return ends.cumsum(1) - ends


def build_model(config: ModelConfig, device: torch.device | str, seed: int) -> PretrainingLlama:
    """A freshly initialised model on `device`; its weights depend on the seed and the shape alone.

    On the meta device the weights have shapes only; `initialise` gives them values. Raises UsageError for a config
    file that is missing or wrong.
    """
    shape = config.shape_file
    llama_config = load_llama_config(shape)
    llama_config.dtype = config.torch_dtype
    llama_config._attn_implementation = "sdpa" if config.use_hf_model else ATTENTION
    try:
        with torch.device("meta"):
            llama = LlamaForCausalLM(llama_config)
    except Exception as error:
        raise UsageError(
            f"--model_config {shape}: no model can be made of it ({type(error).__name__}: {error}). Correct the file"
        ) from error
    nn.Module.to(llama, config.torch_dtype)
    # Pads never reach the loss. Were this id a real token of the tokenizer, the flag would freeze its
    # embedding.
    llama.model.embed_tokens.padding_idx = None
    if config.activation_checkpointing:
        # transformers before 5.18 or so has the older name only, of which newer ones warn
        enable = getattr(llama, "activation_checkpointing_enable", None) or llama.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model = PretrainingLlama(llama, plain=config.use_hf_model, compiled=config.compile_model)
    if torch.device(device).type != "meta":
        initialise(model, torch.device(device), seed, config.init_from)
    millions = parameter_count(model) / 1e6
    logger.info("{}: {:.1f}M parameters in {}", shape, millions, config.dtype)
    return model


def parameter_count(model: nn.Module) -> int:
    """Number of weights; those of tied embeddings count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def initialise(model: PretrainingLlama, device: torch.device, seed: int, init_from: str | None = None) -> None:
    """Weights for a model on the meta device: N(0, initializer_range) for matrices, one for norms, zero for biases; or
    those of a folder. Raises UsageError where the folder's do not fit.

    Drawn one tensor at a time on the CPU in fp32: the same on every device, dtype and number of shards, and 7B never
    stand in fp32 at once. Of a sharded model, each process draws all and keeps its rows.
    """
    generator, spread = torch.Generator().manual_seed(seed), model.config.initializer_range
    given = None if init_from is None else PretrainedWeights(pretrained_folder(init_from))
    shapes = {name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()}
    model.to_empty(device=device)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(device)  # fp32 in every dtype
    weights = dict(model.named_parameters())
    for name, (shape, dtype) in shapes.items():
        if given is not None:
            values = given.read(name, tuple(shape))
        elif len(shape) == 2:
            values = torch.empty(shape).normal_(0.0, spread, generator=generator)
        else:
            values = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        _fill(weights[name], values.to(dtype))


def _fill(weight: Tensor, values: Tensor) -> None:
    """Sets a weight, or the rows of it that this process holds."""
    if isinstance(weight, DTensor):
        part, parts = weight.device_mesh.get_local_rank(), weight.device_mesh.size()
        rows = -(-len(values) // parts)
        weight, values = weight.to_local(), values[part * rows : (part + 1) * rows]
    weight.detach().copy_(values)
