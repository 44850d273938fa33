"""State exists from construction, is predicted on the meta device, and is all that a resumed run needs."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import optimizers
from tests.optimizers.makers import CONTINUOUS, GALORE, METHODS, PROJ_METHODS, PROJECTIONS
from tests.optimizers.models import loss_of, tiny_llama
from tests.optimizers.test_guards import gradients_of, step, weights_of

FORMATS = ("float32", "bfloat16", "int8")
GALORE_NAMES = (
    "galore_adamw",
    "galore_adafactor",
    "galore_lion",
    "galore_adamw8bit",
    "galore_adamw8bit_per_layer",
)
OTHER_NAMES = ("adamw_sn", "adamw_sng", "adam_mini", "sgd_boost")
SHAPES = [(7, 5), (5, 7), (4, 4), (6,), (1,), (80, 60)]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OTHER_NAMES},
    "adamw_sn-no_momentum": ("adamw_sn", {"beta1": 0.0}),
    "adam_mini-one_block_value": ("adam_mini", {"one_block_value": True}),
    "sgd_boost-no_momentum": ("sgd_boost", {"momentum": 0.0}),
    **{
        f"ldadamw-{m}-{e}": ("ldadamw", {"proj_method": m, "error_feedback": e, "rank": 70})
        for m in PROJ_METHODS
        for e in (True, False)
    },
    **{
        f"{name}-{proj}": (name, {"proj_type": proj, "rank": 70, "update_proj_gap": 2})
        for name in GALORE_NAMES
        for proj in PROJECTIONS + CONTINUOUS
    },
}


def build(model: Any, case: str, **options: Any) -> Any:
    name, arguments = CASES[case]
    lr = 1e-3 if name == "sgd_boost" else 0.01  # gains are about the root of a tensor's size
    return optimizers.build_optimizer(name, model, lr=lr, **arguments, **options)


def train(model: Any, optimizer: Any, first: int, last: int) -> None:
    """Updates through a real backward pass, which a per-layer optimizer needs."""
    for update in range(first, last):
        if getattr(optimizer, "per_layer", False):
            optimizer.begin_update()
        loss_of(model, update).backward()
        optimizer.step()
        optimizer.zero_grad()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Saved and read again, refusing anything but tensors and plain containers."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def tensors_of(optimizer: Any) -> list[Tensor]:
    return [t for state in optimizer.state.values() for t in state.values()]


def bytes_of(optimizer: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_of(optimizer))


@pytest.fixture(scope="module")
def meta_model() -> Any:
    return tiny_llama(device="meta")


@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_bytes_predicted_on_meta_are_those_allocated(case: str, state_dtype: str, meta_model: Any) -> None:
    """Before and after updates: nothing is allocated late."""
    predicted = build(meta_model, case, state_dtype=state_dtype)
    assert all(t.is_meta or t.dim() == 0 for t in tensors_of(predicted))
    model = tiny_llama()
    optimizer = build(model, case, state_dtype=state_dtype)
    assert predicted.state_bytes() == optimizer.state_bytes() == bytes_of(optimizer)
    train(model, optimizer, 0, 2)
    assert bytes_of(optimizer) == predicted.state_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [m for m in optimizers.available()])
def test_every_available_method_predicts_its_bytes(name: str, dtype: torch.dtype) -> None:
    """The list of the registry, so that a new method is held too; library baselines have no prediction of their own."""
    predicted = optimizers.build_optimizer(name, tiny_llama(device="meta", dtype=dtype), lr=0.01)
    if not hasattr(predicted, "state_bytes"):
        pytest.skip("the library's own optimizer allocates in its first step")
    model = tiny_llama(dtype=dtype)
    optimizer = optimizers.build_optimizer(name, model, lr=0.01)
    train(model, optimizer, 0, 1)
    # Float32 weights get torch's own Adam and SGD, whose step count is 4 bytes or none where the engine's is 8.
    slack = 0 if type(optimizer) is type(predicted) else 8 * len(optimizer.state)
    assert abs(bytes_of(optimizer) - predicted.state_bytes()) <= slack


@pytest.mark.parametrize("case", CASES)
def test_training_lowers_the_loss(case: str) -> None:
    """All combinations run, and learn one batch by heart to some degree."""
    model = tiny_llama()
    optimizer = build(model, case)
    before = loss_of(model, 0).item()
    for _ in range(12):
        train(model, optimizer, 0, 1)
    assert loss_of(model, 0).item() < before - 0.02


def assert_equal_states(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("name", METHODS)
def test_resume_is_the_straight_run(name: str, state_dtype: str) -> None:
    """Bit for bit, through a file, into an optimizer that never stepped; the learning rate moves meanwhile, refreshes
    fall on both sides of the cut, and the two runs' seeds outside the optimizer differ."""

    def run(weights: list[Any], optimizer: Any, first: int, last: int) -> None:
        for update in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 - 0.08 * update)
            step(optimizer, weights, gradients_of(update, weights))

    straight, halted, resumed = weights_of(*SHAPES), weights_of(*SHAPES), weights_of(*SHAPES)
    options = {"state_dtype": state_dtype}
    one = METHODS[name](straight, **options)
    run(straight, one, 0, 8)
    two = METHODS[name](halted, **options)
    run(halted, two, 0, 5)
    saved = through_a_file(two.state_dict())
    errors = [None if w.grad is None else w.grad.clone() for w in halted]
    torch.manual_seed(1234)
    torch.rand(3)
    three = METHODS[name](resumed, **options)
    for ours, theirs, error in zip(resumed, halted, errors, strict=True):
        ours.data.copy_(theirs.data)
        ours.grad = error
    three.load_state_dict(saved)
    assert_equal_states(three, two)
    run(resumed, three, 5, 8)
    assert_equal_states(three, one)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "case", [c for c in CASES if "galore" not in c or c.endswith(("-std", "-full", "-continuous"))]
)
def test_resume_of_a_model_in_bfloat16(case: str) -> None:
    """Through a real backward pass and, for per-layer updates, inside it; 8-bit and bfloat16 state keep their dtypes
    beside bfloat16 weights."""
    torch.use_deterministic_algorithms(True)
    try:
        straight, halted, resumed = (tiny_llama(dtype=torch.bfloat16) for _ in range(3))
        options = {} if "8bit" in case else {"state_dtype": "bfloat16"}
        one, two = build(straight, case, **options), build(halted, case, **options)
        train(straight, one, 0, 5)
        train(halted, two, 0, 3)
        three = build(resumed, case, **options)
        three.load_state_dict(through_a_file(two.state_dict()))
        resumed.load_state_dict(halted.state_dict())
        assert_equal_states(three, two)
        train(resumed, three, 3, 5)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_states(three, one)
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", METHODS)
def test_state_is_tensors_on_the_parameter_device_and_exists_at_once(name: str) -> None:
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    assert set(optimizer.state) == set(weights)
    before = {w: {k: (t.shape, t.dtype) for k, t in optimizer.state[w].items()} for w in weights}
    for update in range(4):
        step(optimizer, weights, gradients_of(update, weights))
    for weight, state in optimizer.state.items():
        assert all(isinstance(t, Tensor) and t.device == weight.device for t in state.values())
        assert {k: (t.shape, t.dtype) for k, t in state.items()} == before[weight]


def test_loading_another_method_is_refused_by_name() -> None:
    weights = weights_of((7, 5))
    saved = METHODS["SGDBoost"](weights).state_dict()
    optimizer = METHODS["GaLoreAdamW-std"](weights)
    with pytest.raises(ValueError, match="momentum.*GaLoreAdamW does not know"):
        optimizer.load_state_dict(saved)


def test_loading_another_rank_is_refused_by_shape() -> None:
    weights = weights_of((7, 5))
    saved = METHODS["GaLoreAdamW-std"](weights, rank=2).state_dict()
    optimizer = METHODS["GaLoreAdamW-std"](weights, rank=3)
    before = [t.clone() for t in tensors_of(optimizer)]
    with pytest.raises(ValueError, match="basis"):
        optimizer.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(optimizer), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_added_parameter_group_has_state_and_moves(name: str) -> None:
    weights = weights_of((7, 5), (5, 7))
    optimizer = METHODS[name](weights[:1])
    template = {
        k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "param_names", "lr", "base_lr")
    }
    named = name == "AdamMini"
    template = {} if named else template
    added = [("layers.9.mlp.up_proj.weight", weights[1])] if named else [weights[1]]
    optimizer.add_param_group({**template, "params": added, "lr": 0.02})
    assert optimizer.state[weights[1]]
    start = weights[1].detach().clone()
    for update in range(4):
        step(optimizer, weights, gradients_of(update, weights))
    assert not torch.equal(weights[1], start)
    fresh = weights_of((7, 5), (5, 7))
    other = METHODS[name](fresh[1:], lr=0.02)
    for update in range(4):
        step(other, fresh[1:], gradients_of(update, fresh)[1:])
    if "random" not in name and "lowrank" not in name:  # drawn bases differ by the parameter's place
        assert torch.equal(weights[1], fresh[1])


@pytest.mark.parametrize("kind", GALORE)
def test_initial_learning_rate_of_a_continuous_basis_is_saved(kind: str) -> None:
    """The basis learns at lr_t / lr_0: a resumed run constructed with another lr must go on with the old lr_0."""
    straight, resumed = weights_of((7, 5)), weights_of((7, 5))
    one, two = (METHODS[f"{kind}-continuous"](w, lr=lr) for w, lr in ((straight, 0.01), (resumed, 0.5)))
    for update in range(3):
        step(one, straight, gradients_of(update, straight))
    two.load_state_dict(through_a_file(one.state_dict()))
    resumed[0].data.copy_(straight[0].data)
    for weights, optimizer in ((straight, one), (resumed, two)):
        for group in optimizer.param_groups:
            group["lr"] = 0.004
        for update in range(3, 6):
            step(optimizer, weights, gradients_of(update, weights))
    assert torch.equal(straight[0], resumed[0])
    assert_equal_states(one, two)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("name", ["sgd_boost", "ldadamw", "galore_adamw", "muon"])
def test_an_optimizer_that_has_run_can_be_rolled_back(name: str, at: int) -> None:
    """The same updates from a loaded state as after the first time there, also across the refresh before update 3."""
    model = tiny_llama()
    settings = {"galore_adamw": {"rank": 4, "update_proj_gap": 2}, "ldadamw": {"rank": 4}}.get(name, {})
    optimizer = optimizers.build_optimizer(name, model, 1e-3, **settings)
    train(model, optimizer, 0, at)
    weights, state = parameters_to_vector(model.parameters()).detach().clone(), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, at, at + 3)
    once = parameters_to_vector(model.parameters()).detach().clone()
    assert not torch.equal(once, weights)
    vector_to_parameters(weights.clone(), model.parameters())
    optimizer.load_state_dict(state)
    train(model, optimizer, at, at + 3)
    assert torch.equal(parameters_to_vector(model.parameters()).detach(), once)
