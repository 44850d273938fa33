"""The memory of an update, by running one on meta tensors: the model, loss and optimizer that will train, no numbers.

Nothing is derived twice: whatever the forward pass keeps and the optimizer makes is seen operation by operation, so
the prediction follows the code. It is that of eager execution in one process, with all rows as long as --max_length.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from optimizers import Session, build_optimizer, session
from optimizers.engine.optimizer import EngineOptimizer
from peft_pretraining.distributed.world import World
from peft_pretraining.errors import UsageError
from peft_pretraining.memory.ledger import Account, Bytes, Ledger
from peft_pretraining.model.llama import PretrainingLlama, build_model
from peft_pretraining.model.shape import load_llama_config
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.step import clip_gradients, gradient_norm

META = torch.device("meta")
WEIGHTS, GRADIENTS, ACTIVATIONS, LOSS = "weights", "gradients", "activations", "head and loss"
STATE = "state: "
_KINDS = {
    "moment": "moments",
    "second_moment": "second moments",
    "basis": "bases",
    "residual": "residuals",
    "statistic": "statistics",
}
_OF_LIBRARIES = (
    ("exp_avg_sq", "second_moment"),
    ("state2", "second_moment"),
    ("absmax2", "second_moment"),
    ("exp_avg", "moment"),
    ("state1", "moment"),
    ("absmax1", "moment"),
    ("momentum", "moment"),
)
"""Parts of the names of library optimizers' state tensors; the first that fits."""
_FORWARD, _HEAD, _BACKWARD = "forward pass", "head and loss", "backward pass"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
_NEAR = 2  # layers at either end whose moments are told apart
_DEPTHS = (2 * _NEAR, 2 * _NEAR + 1)
_UPDATES = 2  # the first computes bases, and libraries allocate their state at its end


def predict(config: RunConfig) -> Account:
    """Bytes of the training run that `config` describes, in its first updates.

    The layers of the decoder are equal, so whatever a moment holds grows linearly with their number: two shallow
    models give the deep one. Raises UsageError for settings whose memory cannot be predicted.
    """
    if config.parallel.parallel == "fsdp":
        raise UsageError("--parallel fsdp: memory is predicted for one process; leave it out")
    layers = load_llama_config(config.model.shape_file).num_hidden_layers
    if layers <= _DEPTHS[1]:
        return _predict(config, layers)
    shallow, deep = (_predict(config, depth) for depth in _DEPTHS)
    return _extrapolated(shallow, deep, (layers - _DEPTHS[1]) / (_DEPTHS[1] - _DEPTHS[0]))


def _predict(config: RunConfig, layers: int) -> Account:
    """The same for a model cut to its first layers."""
    eager = dataclasses.replace(config.model, compile_model=False)
    model = build_model(eager, META, config.training.seed).train()
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    for layer in model.model.layers:
        layer.self_attn.forward = _with_fused_attention(layer.self_attn.forward)
    arguments = config.optimizer.arguments() | ({"execution": "eager"} if config.optimizer.method.engine else {})
    ledger = Ledger(META)
    ledger.mark(WEIGHTS, [*model.parameters(), *model.buffers()])
    watch(ledger, model)
    try:
        optimizer = build_optimizer(config.optimizer.optimizer, model, config.optimizer.lr, **arguments)
        if isinstance(optimizer, EngineOptimizer):
            optimizer.enable_meta_updates()
        training = config.training
        updates = session(optimizer, max_norm=training.grad_clipping, micro_batches=training.gradient_accumulation or 1)
        mark_state(ledger, optimizer)
        with ledger:
            for update in range(1, _UPDATES + 1):
                ledger.stage = f"update {update}"
                _update(ledger, model, updates, config)
                mark_state(ledger, optimizer)
    except ValueError as error:
        raise UsageError(f"--optimizer {config.optimizer.optimizer}: {error}") from error
    return ledger.account()


def _extrapolated(shallow: Account, deep: Account, factor: float) -> Account:
    """What a model holds that is deeper than `deep` by `factor` times the difference between the two."""
    moments = {
        moment: _extended(shallow.moments[moment], held, factor)
        for moment, held in deep.moments.items()
        if moment in shallow.moments
    }
    return Account(moments, _extended(shallow.largest, deep.largest, factor))


def _extended(shallow: Bytes, deep: Bytes, factor: float) -> Bytes:
    kinds = sorted({*shallow, *deep})
    return {kind: round(deep.get(kind, 0) + factor * (deep.get(kind, 0) - shallow.get(kind, 0))) for kind in kinds}


def mark_state(ledger: Ledger, optimizer: torch.optim.Optimizer) -> None:
    """Tell the ledger which tensors are state, and of what kind."""
    managed = optimizer.managed if isinstance(optimizer, EngineOptimizer) else {}
    for param, state in optimizer.state.items():
        specs = {name: spec.kind for name, spec, _ in managed[param].specs} if param in managed else {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                ledger.mark(STATE + _KINDS[_kind(name, specs)], [value])


def watch(ledger: Ledger, model: PretrainingLlama) -> None:
    """Have the ledger told where a model's forward and backward pass are, and which tensors are activations, of the
    head and loss, and gradients. To be called before an optimizer sets hooks of its own."""

    def begin(*_: Any) -> None:
        ledger.moment = _FORWARD

    def end(*_: Any) -> None:
        ledger.mark_born_in(_FORWARD, ACTIVATIONS)
        ledger.moment = _HEAD

    def leave(*_: Any) -> None:
        ledger.mark_born_in(_HEAD, LOSS)
        ledger.moment = _BACKWARD

    model.model.register_forward_pre_hook(begin)
    model.model.register_forward_hook(end)
    model.register_forward_hook(leave)
    for name, param in model.named_parameters():
        param.register_post_accumulate_grad_hook(_announce(ledger, _place(name, len(model.model.layers))))


def _announce(ledger: Ledger, name: str) -> Callable[[Tensor], None]:
    def arrived(param: Tensor) -> None:
        assert param.grad is not None
        ledger.mark(GRADIENTS, [param.grad])
        ledger.moment = f"{_BACKWARD} from the gradient of {name} on"

    return arrived


def _place(name: str, layers: int) -> str:
    """A parameter's name with its layer counted from the nearer end, so that it means the same at every depth."""
    match = _LAYER.match(name)
    if match is None:
        return name
    index = int(match[1])
    if index < _NEAR:
        return f"layer {index + 1}, {match[2]}"
    if layers - index <= _NEAR:
        return f"layer {layers - index} from the last, {match[2]}"
    return f"an inner layer, {match[2]}"


def _update(ledger: Ledger, model: PretrainingLlama, updates: Session, config: RunConfig) -> None:
    """One update as `training.train_step` makes it in one process."""
    training = config.training
    update = ledger.stage
    micro_batches = training.gradient_accumulation or 1
    ids = torch.zeros(training.batch_size, config.data.max_length, dtype=torch.int64)
    lengths = torch.full((training.batch_size,), config.data.max_length)
    updates.begin(micro_batches)
    for number in range(1, micro_batches + 1):
        ledger.stage = f"{update}, micro-batch {number}" if micro_batches > 1 else update
        (model(ids, lengths) / ids.numel()).backward()
    ledger.stage, ledger.moment = update, "optimizer"
    if not updates.in_backward:
        norm = gradient_norm(updates, World(META))
        if training.grad_clipping > 0:
            clip_gradients(updates, norm, training.grad_clipping)
    updates.step()


def _kind(name: str, specs: Mapping[str, str]) -> str:
    own = specs.get(name) or specs.get(name.removesuffix("_absmax"))
    return own or next((kind for part, kind in _OF_LIBRARIES if part in name), "statistic")


def _with_fused_attention(forward: Callable[..., Any]) -> Callable[..., Any]:
    """An attention layer that runs fused attention, as on a CPU or GPU.

    Meta tensors alone take the variant that keeps all probabilities. The mode is set within the layer, since the
    backward pass, where checkpointed layers run again, takes off those that are set around it.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with _FusedAttention():
            return forward(*args, **kwargs)

    return run


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        called = _fused if function is scaled_dot_product_attention else function
        return called(*args, **(kwargs or {}))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
