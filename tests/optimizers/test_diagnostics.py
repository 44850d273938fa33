"""Figures of updates: against numpy's SVD, in every way an update is made, and absent where nobody asks."""

import numpy
import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers.engine import diagnostics
from optimizers.engine.optimizer import EngineOptimizer

SHAPES = [(12, 7), (7, 12), (9, 9)]
PROJECTED = {
    "galore_adamw": {"rank": 4, "update_proj_gap": 3},
    "galore_lion": {"rank": 4, "update_proj_gap": 3, "proj_type": "full"},
    "galore_adafactor": {"rank": 4, "proj_type": "continuous"},
    "ldadamw": {"rank": 4},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spectrum(matrix: Tensor) -> numpy.ndarray:
    return numpy.linalg.svd(matrix.double().numpy(), compute_uv=False)


def span(basis: Tensor, side: str) -> numpy.ndarray:
    """Orthonormal columns by an SVD of the basis, not by the QR of the code under test."""
    columns = (basis.T if side == "right" else basis).double().numpy()
    return numpy.linalg.svd(columns, full_matrices=False)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_effective_rank_is_that_of_numpys_singular_values(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    shares = spectrum(matrix) / spectrum(matrix).sum()
    expected = numpy.exp(-(shares * numpy.log(shares)).sum())
    assert float(diagnostics.effective_rank(matrix)) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_of_what_is_known() -> None:
    equal = torch.linalg.qr(random(9, 5)).Q
    assert float(diagnostics.effective_rank(equal)) == pytest.approx(5)
    assert float(diagnostics.effective_rank(random(9, 1) @ random(1, 6, seed=1))) == pytest.approx(1, abs=1e-4)
    assert float(diagnostics.effective_rank(torch.zeros(3, 4))) == 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_drift_is_the_mean_squared_sine_of_numpys_principal_angles(side: diagnostics.Side) -> None:
    shape = (3, 11) if side == "right" else (11, 3)
    old, new = random(*shape), random(*shape, seed=1)
    cosines = numpy.linalg.svd(span(old, side).T @ span(new, side), compute_uv=False)
    assert float(diagnostics.drift(old, new, side)) == pytest.approx(numpy.mean(1 - cosines**2), rel=1e-9)
    mixed = random(3, 3, seed=2) @ old if side == "right" else old @ random(3, 3, seed=2)
    assert float(diagnostics.drift(old, mixed, side)) == pytest.approx(0, abs=1e-6)


class Trained:
    """A linear model under a method, observed from its first update on."""

    def __init__(self, method: str, **settings: object) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(10, 14, bias=False), nn.Linear(14, 8, bias=False))})
        self.optimizer = optimizers.build_optimizer(method, self.model, 0.01, **settings)
        assert isinstance(self.optimizer, EngineOptimizer)
        self.observer = diagnostics.Observer(self.optimizer.managed.values())
        self.optimizer.shared.observer = self.observer
        self.names = {name.removesuffix(".weight"): p for name, p in self.model.named_parameters()}
        self.gradients: dict[str, Tensor] = {}

    def update(self, number: int, whole: bool = True) -> dict[str, float]:
        self.observer.whole = whole
        if self.optimizer.per_layer:
            self.optimizer.begin_update()
        else:
            self.optimizer.zero_grad()
        self.model["mlp"](random(16, 10, seed=number)).square().mean().backward()
        self.gradients = {k: p.grad.clone() for k, p in self.names.items() if p.grad is not None}
        self.optimizer.step()
        return self.observer.take()

    def basis(self, name: str) -> dict[str, Tensor]:
        managed = self.optimizer.managed[self.names[name]]
        return {key: basis.clone() for key, (basis, _) in managed.rule.bases(managed.values()).items()}

    def sides(self, name: str) -> dict[str, str]:
        managed = self.optimizer.managed[self.names[name]]
        return {key: side for key, (_, side) in managed.rule.bases(managed.values()).items()}


@pytest.mark.parametrize("method", PROJECTED)
def test_projections_are_judged_by_the_basis_that_was_used(method: str) -> None:
    trained = Trained(method, **PROJECTED[method])
    for number in range(5):
        before = {name: trained.basis(name) for name in trained.names}
        figures = trained.update(number)
        for name, gradient in trained.gradients.items():
            after, sides = trained.basis(name), trained.sides(name)
            # A refreshed basis is used at once; Online Subspace Descent's learns after its use, and not from the first.
            refreshed = trained.optimizer.managed[trained.names[name]].refreshes.tried_for == number + 1
            used = after if method == "ldadamw" or refreshed else before[name]
            seen = gradient.double().numpy()
            for key, basis in used.items():
                columns = span(basis, sides[key])
                seen = seen @ columns if sides[key] == "right" else columns.T @ seen
            values = numpy.linalg.svd(seen, compute_uv=False)
            shares = values / values.sum()
            energy = (seen**2).sum() / (gradient.double().numpy() ** 2).sum()
            assert figures[f"captured_energy/{name}"] == pytest.approx(energy, rel=1e-5)
            rank = numpy.exp(-(shares * numpy.log(shares)).sum())
            assert figures[f"effective_rank/{name}"] == pytest.approx(rank, rel=1e-5)


def test_drift_is_noted_when_a_refresh_replaces_a_basis() -> None:
    """Also on updates that are not looked at; never at the first basis."""
    trained = Trained("galore_adamw", rank=4, update_proj_gap=3)
    noted = {}
    for number in range(1, 8):
        before = trained.basis("mlp.0")["basis"]
        figures = trained.update(number, whole=False)
        after = trained.basis("mlp.0")["basis"]
        if figures:
            assert set(figures) == {"basis_drift/mlp.0", "basis_drift/mlp.1"}
            cosines = numpy.linalg.svd(span(before, "right").T @ span(after, "right"), compute_uv=False)
            assert figures["basis_drift/mlp.0"] == pytest.approx(numpy.mean(1 - cosines**2), abs=1e-6)
            noted[number] = figures
    assert list(noted) == [4, 7]


def test_a_basis_that_moves_drifts_at_every_update_but_the_first() -> None:
    for method in ("ldadamw", "galore_adafactor"):
        trained = Trained(method, **PROJECTED[method])
        drifts = [trained.update(number).get("basis_drift/mlp.0") for number in range(3)]
        assert drifts[0] is None and all(0 < drift < 1 for drift in drifts[1:] if drift is not None)
        assert None not in drifts[1:]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("adamw_sn", {}),
        ("adamw_sn", {"per_layer": True}),
        ("adamw_sn", {"state_dtype": "bfloat16"}),
        ("galore_adamw", {"rank": 4, "per_layer": True}),
        ("lion", {"execution": "eager"}),
        ("sgd_boost", {"per_layer": True}),
    ],
)
def test_norms_are_those_of_what_happened(method: str, settings: dict) -> None:
    trained = Trained(method, **settings)
    for number in range(2):
        before = {name: p.detach().clone() for name, p in trained.names.items()}
        figures = trained.update(number)
        for name, param in trained.names.items():
            change = (param.detach() - before[name]).double().numpy()
            assert figures[f"update_norm/{name}"] == pytest.approx(numpy.sqrt((change**2).sum()), rel=1e-4)
            assert figures[f"update_rms/{name}"] == pytest.approx(numpy.sqrt((change**2).mean()), rel=1e-4)
            assert figures[f"weight_norm/{name}"] == pytest.approx(float(param.detach().norm()), rel=1e-5)
            if name in trained.gradients:
                rms = numpy.sqrt((trained.gradients[name].double().numpy() ** 2).mean())
                assert figures[f"gradient_rms/{name}"] == pytest.approx(rms, rel=1e-5)
            assert figures[f"gradient_rms/{name}"] > 0
    has_second_moments = any(name.startswith("second_moment_mean/") for name in figures)
    assert has_second_moments == (method not in ("sgd_boost", "lion"))


def test_second_moments_are_those_of_the_state() -> None:
    trained = Trained("adamw_sn")
    figures = trained.update(0)
    values = next(v for k, v in trained.optimizer.state[trained.names["mlp.0"]].items() if "sq" in k).double().numpy()
    found = [figures[f"second_moment_{kind}/mlp.0"] for kind in ("min", "mean", "max")]
    assert found == pytest.approx([values.min(), values.mean(), values.max()], rel=1e-6)


@pytest.mark.parametrize("method", [*PROJECTED, "adamw_sn"])
def test_looking_changes_nothing(method: str) -> None:
    looked, plain = (Trained(method, **PROJECTED.get(method, {})) for _ in range(2))
    plain.optimizer.shared.observer = None
    for number in range(4):
        looked.update(number)
        plain.update(number)
    for name in looked.names:
        assert torch.equal(looked.names[name], plain.names[name])


def test_nobody_looks_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def trap(*_: object, **__: object) -> None:
        raise AssertionError("a figure was computed though nobody asked")

    for name in ("frame", "norm", "rms", "changes", "second_moments", "_copies"):
        monkeypatch.setattr(diagnostics, name, trap)
    torch.manual_seed(0)
    model = nn.ModuleDict({"mlp": nn.Linear(10, 8, bias=False)})
    optimizer = optimizers.build_optimizer("galore_adamw", model, 0.01, rank=4)
    model["mlp"](random(4, 10)).sum().backward()
    optimizer.step()
