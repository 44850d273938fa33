"""Parameters of every kind: cast or moved after construction, float64, and kinds that are refused by name."""

import copy

import pytest
import torch
from torch import nn

import optimizers
from optimizers.baselines import EngineAdamW
from optimizers.engine import precision
from optimizers.engine.rule import StateSpec

METHODS = {
    "adamw_sn": lambda w, **k: optimizers.AdamWSN([{"params": [("w", w)], "sn": True}], lr=1e-2, **k),
    "galore": lambda w, **k: optimizers.GaLoreAdamW([{"params": [("w", w)], "rank": 16}], lr=1e-2, **k),
    "sgd_boost": lambda w, **k: optimizers.SGDBoost([("w", w)], lr=1e-2, **k),
}


def gradients(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(96, 64, generator=generator) for _ in range(count)]


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, grad: torch.Tensor) -> None:
    weight.grad = grad.to(weight.dtype)
    optimizer.step()


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_a_cast_after_construction_is_one_before_it(method: str, state_dtype: str) -> None:
    start = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    results = []
    for cast_first in (True, False):
        layer = nn.Linear(64, 96, bias=False)
        layer.weight.data.copy_(start)
        if cast_first:
            layer.to(torch.bfloat16)
        optimizer = METHODS[method](layer.weight, state_dtype=state_dtype)
        layer.to(torch.bfloat16)
        for grad in gradients(4):
            step(optimizer, layer.weight, grad)
        results.append(layer.weight.detach())
    assert torch.equal(*results)


def test_a_model_cast_in_the_middle_keeps_its_state_and_rounds_from_then_on() -> None:
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data.fill_(1.0)
    optimizer = METHODS["adamw_sn"](layer.weight)
    step(optimizer, layer.weight, torch.ones(64, 64))
    before = copy.deepcopy(optimizer.state[layer.weight])
    layer.to(torch.bfloat16)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4  # a fortieth of a spacing
    for _ in range(49):
        step(optimizer, layer.weight, torch.ones(64, 64))
    assert int(optimizer.state[layer.weight]["step"]) == 50
    assert optimizer.state[layer.weight]["exp_avg"].dtype == before["exp_avg"].dtype == torch.float32
    moved = 1 - layer.weight.detach().float().mean()
    # the norm of 64 ones in a row makes each step lr / 8; the cast has rounded the first one away
    assert float(moved) == pytest.approx(49e-4 / 8, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_float64_is_computed_in_float64(method: str) -> None:
    """The update is that of numbers with 53 bits: no state, and no weight, holds float32 numbers only."""
    weight = nn.Parameter(torch.randn(96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    optimizer = METHODS[method](weight)
    for grad in gradients(3):
        step(optimizer, weight, grad.double() / 3)
    for name, tensor in {"weight": weight.detach(), **optimizer.state[weight]}.items():
        if name != "step":
            assert tensor.dtype == torch.float64
            assert not torch.equal(tensor, tensor.float().double()), name


def test_float64_equals_torch() -> None:
    start = torch.randn(96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    pairs = (
        (mine, EngineAdamW([mine], lr=1e-2, weight_decay=0.1)),
        (theirs, torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)),
    )
    for grad in gradients(5):
        for weight, optimizer in pairs:
            step(optimizer, weight, grad.double() / 3)
    torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-15)


def test_kinds_without_a_right_update_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="w: complex"):
        METHODS["adamw_sn"](nn.Parameter(torch.zeros(8, 8, dtype=torch.complex64)))
    with pytest.raises(ValueError, match="w: float64 weights have float64 state, not int8"):
        METHODS["adamw_sn"](nn.Parameter(torch.zeros(96, 64, dtype=torch.float64)), state_dtype="int8")
    for mark in ("_is_flat_param", "_fsdp_flattened"):  # what FullyShardedDataParallel leaves on its parameters
        flat = nn.Parameter(torch.zeros(64))
        setattr(flat, mark, True)
        with pytest.raises(ValueError, match="w: FullyShardedDataParallel .* torch.*fully_shard"):
            METHODS["sgd_boost"](flat)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_low_rank_moments_follow_the_option_at_any_rank(state_dtype: str) -> None:
    """Only vectors are exempt: one value per row, column or block."""
    weight = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta")
    for rank in (4, 256, 257):
        for kind in ("moment", "second_moment"):
            spec = StateSpec((4096, rank), kind)
            assert precision.storage_format(spec, state_dtype, weight) == state_dtype
        assert precision.storage_format(StateSpec((4096, rank), "basis"), state_dtype, weight) == "bfloat16"
    for shape in ((4096, 1), (1, 4096), (4096,), (1 << 20, 1)):
        assert precision.storage_format(StateSpec(shape, "second_moment"), state_dtype, weight) == "float32"
