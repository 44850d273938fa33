"""Methods that must coincide: at full rank in an identity basis, with subsets or blocks of one element, with gain 1.

Both sides are classes of the package or torch's own optimizers, so no oracle takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import optimizers

UPDATES = 8
SAME = 1e-5  # of the distance moved: two orders of the same float32 operations over 8 updates
SHAPES = [(9, 5), (5, 9), (6, 6), (1, 7), (7, 1)]
Make = Callable[[list[nn.Parameter]], Any]
shapes = st.one_of(
    st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(1, 30).map(lambda n: (n,)), st.just((1,))
)
FEW = settings(max_examples=15, deadline=None, derandomize=True)


def moved(
    make: Make,
    shape: tuple[int, ...],
    seed: int = 0,
    prepare: Callable[[Any, nn.Parameter], None] | None = None,
    keep_error: bool = False,
    disjoint_until: int = 0,
) -> Tensor:
    """How far one parameter moves under random gradients and a moving learning rate.

    The gradients of the first `disjoint_until` updates are made disjoint, so that a basis from them is the identity.
    Where they are zero a projection may leave rounding noise, whose Adam step is arbitrary: a disjoint first update is
    not counted as moved, and disjoint gradients throughout count only where they are not zero.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(0.2 * torch.randn(shape, generator=generator))
    start = weight.detach().clone()
    optimizer = make([weight])
    if prepare is not None:
        prepare(optimizer, weight)
    rate = optimizer.param_groups[0]["lr"]
    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = rate * (1 - 0.1 * update)
        gradient = 0.1 * torch.randn(shape, generator=generator)
        gradient = disjoint(gradient) if update < disjoint_until else gradient
        weight.grad = gradient + weight.grad if keep_error and weight.grad is not None else gradient
        optimizer.step()
        optimizer.zero_grad()
        if update == 0 and disjoint_until == 1:
            start = weight.detach().clone()
    distance = weight.detach() - start
    return disjoint(distance) if disjoint_until == UPDATES else distance


def assert_same(ours: Tensor, theirs: Tensor, limit: float = SAME) -> None:
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() <= limit


def disjoint(gradient: Tensor) -> Tensor:
    """The gradient with all but one entry of every row (or column) of the longer side set to zero.

    Its columns (rows) then have disjoint support, so its singular vectors on the shorter side are unit vectors: a basis
    computed from it is the identity up to order and signs, to which Adam is blind.
    """
    rows, columns = gradient.shape
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return gradient * ((i % columns == j) if rows >= columns else (j % rows == i))


def adamw(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-12, decay: float = 0.0) -> Make:
    return lambda weights: torch.optim.AdamW(weights, lr=0.01, betas=betas, eps=eps, weight_decay=decay)


def galore(kind: str, proj_type: str, **arguments: Any) -> Make:
    def make(weights: list[nn.Parameter]) -> Any:
        group = {
            "params": weights,
            "rank": 100,
            "update_proj_gap": 1000,
            "scale": 1.0,
            "proj_type": proj_type,
        }
        return getattr(optimizers, kind)([group], lr=0.01, **arguments)

    return make


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right", "full"])
def test_galore_at_full_rank_in_the_identity_basis_is_adam(proj_type: str, shape: tuple[int, int]) -> None:
    """A side longer than the rank cannot have a square identity: the basis then is the leading part of one, and the
    projected side must be the shorter one. `full` and the wrong side are exact on square matrices only."""
    square = shape[0] == shape[1]
    if not square and proj_type in ("reverse_std", "full"):
        pytest.skip("no basis of min(m, n) vectors spans the longer side")
    if not square and proj_type == ("left" if shape[0] > shape[1] else "right"):
        pytest.skip("no basis of min(m, n) vectors spans the longer side")
    ours = moved(galore("GaLoreAdamW", proj_type, eps=1e-12), shape, disjoint_until=1)
    assert_same(ours, moved(adamw(), shape, disjoint_until=1))


@pytest.mark.parametrize("shape", SHAPES)
def test_galore_adam8bit_at_full_rank_is_adam(shape: tuple[int, int]) -> None:
    """Moments of fewer than 4096 elements are not quantized; eps has torch's place."""
    ours = moved(galore("GaLoreAdamW8bit", "std", weight_decay=0.0, eps=1e-3), shape, disjoint_until=1)
    assert_same(ours, moved(adamw(eps=1e-3), shape, disjoint_until=1))


@pytest.mark.parametrize("shape", SHAPES)
def test_online_subspace_with_a_still_basis_is_adam(shape: tuple[int, int]) -> None:
    """At full rank the identity already reconstructs every gradient: the objective is at its minimum, its gradient is
    zero, and plain descent leaves the basis where it is."""
    ours = moved(galore("GaLoreAdamW", "continuous_sgd", eps=1e-12), shape, disjoint_until=1)
    assert_same(ours, moved(adamw(), shape, disjoint_until=1))


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("method", ["power_iteration", "svd"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_ldadam_at_full_rank_in_the_identity_basis_is_adam(
    shape: tuple[int, int], decay: float, method: str, feedback: bool
) -> None:
    """Disjoint gradients throughout: every basis is a permutation, which changes as the columns' norms do, so the
    change of basis takes part. At full rank nothing is lost, so feedback adds rounding noise only."""

    def make(weights: list[nn.Parameter]) -> Any:
        group = {"params": weights, "enable_lowrank": True, "rank": 100}
        settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-12, "weight_decay": decay}
        return optimizers.LDAdamW([group], proj_method=method, error_feedback=feedback, **settings)

    ours = moved(make, shape, keep_error=feedback, disjoint_until=UPDATES)
    assert_same(ours, moved(adamw((0.9, 0.99), decay=decay), shape, disjoint_until=UPDATES))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["GaLoreAdamW", "GaLoreAdamW8bit"])
def test_rotated_moments_survive_a_refresh(kind: str, shape: tuple[int, int]) -> None:
    """A refresh before every update, each basis a permutation: with its moments carried along this still is Adam."""

    def make(weights: list[nn.Parameter]) -> Any:
        group = {"params": weights, "rank": 100, "update_proj_gap": 1, "scale": 1.0, "rotate_moments": True}
        return getattr(optimizers, kind)([group], lr=0.01, eps=1e-12, weight_decay=0.0)

    assert_same(moved(make, shape, disjoint_until=UPDATES), moved(adamw(), shape, disjoint_until=UPDATES))


@FEW
@given(shapes, st.integers(0, 2**20))
def test_subsets_of_one_element_are_adam(shape: tuple[int, ...], seed: int) -> None:
    def make(weights: list[nn.Parameter]) -> Any:
        return optimizers.AdamWSNG(weights, lr=0.01, subset_size=1, eps=1e-12)

    assert_same(moved(make, shape, seed), moved(adamw(), shape, seed))


@pytest.mark.parametrize(
    "role",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "layers.0.mlp.up_proj.weight",
        "layers.0.self_attn.v_proj.weight",
        "layers.0.self_attn.o_proj.weight",
    ],
)
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adam_mini_with_rows_of_one_element_is_adamw(role: str, decay: float) -> None:
    def make(weights: list[nn.Parameter]) -> Any:
        return optimizers.AdamMini([(role, weights[0])], lr=0.01, eps=1e-3, weight_decay=decay, dim=1, n_heads=1)

    assert_same(moved(make, (13, 1)), moved(adamw(eps=1e-3, decay=decay), (13, 1)))


@pytest.mark.parametrize("role", ["self_attn.q_proj.weight", "self_attn.k_proj.weight"])
def test_adam_mini_with_heads_of_one_element_is_adamw(role: str) -> None:
    def make(weights: list[nn.Parameter]) -> Any:
        named = [(f"layers.0.{role}", weights[0])]
        return optimizers.AdamMini(named, lr=0.01, eps=1e-3, weight_decay=0.5, dim=6, n_heads=6)

    assert_same(moved(make, (6, 1)), moved(adamw(eps=1e-3, decay=0.5), (6, 1)))


def test_adam_mini_on_biases_is_adam() -> None:
    def make(weights: list[nn.Parameter]) -> Any:
        named = [("layers.0.self_attn.q_proj.bias", weights[0])]
        return optimizers.AdamMini(named, lr=0.01, eps=1e-3, weight_decay=0.5, dim=6, n_heads=6)

    assert_same(moved(make, (6,)), moved(adamw(eps=1e-3), (6,)))


@FEW
@given(shapes, st.integers(0, 2**20), st.sampled_from([0.0, 0.9]))
def test_sgd_boost_with_gain_one_is_sgd_with_momentum(shape: tuple[int, ...], seed: int, momentum: float) -> None:
    """torch's SGD with dampening = momentum has the same buffer: the first gradient, then the average."""

    def gain_one(optimizer: Any, weight: nn.Parameter) -> None:
        saved = optimizer.state_dict()
        saved["state"][0]["gain"] = torch.ones_like(saved["state"][0]["gain"])
        optimizer.load_state_dict(saved)

    def ours(weights: list[nn.Parameter]) -> Any:
        return optimizers.SGDBoost(weights, lr=0.05, momentum=momentum, weight_decay=0.0)

    def theirs(weights: list[nn.Parameter]) -> Any:
        return torch.optim.SGD(weights, lr=0.05, momentum=momentum, dampening=momentum)

    assert_same(moved(ours, shape, seed, gain_one), moved(theirs, shape, seed))


def test_no_momentum_in_subset_norm_keeps_none() -> None:
    weight = nn.Parameter(torch.randn(8, 4))
    state = optimizers.AdamWSN([{"params": [weight], "sn": True}], betas=(0.0, 0.999)).state[weight]
    assert sum(t.numel() for t in state.values()) < weight.numel()


ORDERED: dict[str, Make] = {
    "AdamWSN": lambda w: optimizers.AdamWSN([{"params": w, "sn": True}], lr=0.01),
    "AdamWSNG": lambda w: optimizers.AdamWSNG(w, lr=0.01),
    "SGDBoost": lambda w: optimizers.SGDBoost(w, lr=0.01),
    "LDAdamW": lambda w: optimizers.LDAdamW([{"params": w, "enable_lowrank": True, "rank": 3}], lr=0.01),
    **{
        f"{kind}-{proj}": (
            lambda w, kind=kind, proj=proj: getattr(optimizers, kind)(
                [{"params": w, "rank": 3, "update_proj_gap": 3, "proj_type": proj}], lr=0.01
            )
        )
        for kind in ("GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor", "GaLoreLion")
        for proj in ("std", "full", "continuous")
    },
}


@pytest.mark.parametrize("name", ORDERED)
def test_parameter_order_does_not_matter(name: str) -> None:
    """Bit for bit: no parameter sees another."""

    def run(order: list[int]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(4)
        weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        optimizer = ORDERED[name]([weights[i] for i in order])
        for _ in range(5):
            for weight in weights:
                gradient = torch.randn(weight.shape, generator=generator)
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
            optimizer.step()
            optimizer.zero_grad()
        return [w.detach() for w in weights]

    for ours, theirs in zip(run([0, 1, 2, 3, 4]), run([3, 1, 4, 0, 2]), strict=True):
        assert torch.equal(ours, theirs)
