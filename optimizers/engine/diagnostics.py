"""Figures of what an update does to each parameter, for a loop that asks for them; otherwise nothing here runs.

A rule says by the kinds of its state, and by `UpdateRule.bases`, what there is to look at. Figures are named
KIND/PARAMETER and stay on the device until `Observer.take`. RMS is the root of the mean of squares, norms are 2-norms.

    gradient_rms, weight_norm, update_rms, update_norm     of what the rule was given, and of W_after - W_before
    captured_energy    ||projection of G on the span||_F^2 / ||G||_F^2, from 0 to 1
    effective_rank     exp of the entropy of the projection's normalised singular values (Roy & Vetterli, EUSIPCO 2007)
    basis_drift        1 - ||Q_old' Q_new||_F^2 / r: the mean squared sine of the angles between two spans, 0 to 1
    second_moment_min, second_moment_mean, second_moment_max
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from .parameter import ManagedParameter
from .rule import Bases, Side


def rms(tensor: Tensor) -> Tensor:
    """Root of the mean of squares, 0-D float32."""
    return norm(tensor) / max(tensor.numel(), 1) ** 0.5


def norm(tensor: Tensor) -> Tensor:
    """The 2-norm, 0-D float32."""
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def frame(basis: Tensor, side: Side) -> Tensor:
    """Orthonormal columns with the span of a basis, float64: (n, r) of a right basis, (m, r) of a left one."""
    return torch.linalg.qr((basis.mT if side == "right" else basis).double()).Q


def projection(matrix: Tensor, bases: Bases) -> Tensor:
    """The matrix (m, n) in orthonormal coordinates of every basis' span: (m, r), (r, n) or (r, r), float64."""
    result = matrix.double()
    for basis, side in bases.values():
        columns = frame(basis, side)
        result = result @ columns if side == "right" else columns.mT @ result
    return result


def effective_rank(matrix: Tensor) -> Tensor:
    """exp(entropy) of the singular values as shares of their sum; from 1 to the rank, 0 for a zero matrix."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().mT
    # The roots of the small Gram matrix's eigenvalues: far cheaper than an SVD, and in float64 as good for an entropy.
    values = torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(shares).sum().exp() * (values.sum() > 0)


def drift(old: Tensor, new: Tensor, side: Side) -> Tensor:
    """1 - ||Q_old' Q_new||_F^2 / r of the spans of two bases of the same shape."""
    overlap = frame(old, side).mT @ frame(new, side)
    return 1.0 - overlap.square().sum() / overlap.shape[0]


class Observer:
    """Collects figures of updates while they are made; `whole` asks for all of them.

    Without `whole`, only the drift of bases that a refresh has replaced is noted, whenever that happens. Keeps a copy
    of such bases between refreshes, and of a weight during its update.
    """

    def __init__(self, managed: Iterable[ManagedParameter]) -> None:
        self.whole = False
        self.names: dict[ManagedParameter, str] = {m: short_name(m.name) for m in managed}
        self._figures: dict[str, Tensor] = {}
        self._bases = {m: _copies(m) for m in self.names if m.rule.refreshes and m.step}

    def looks_at(self, managed: ManagedParameter) -> bool:
        """Whether `watching` has anything to do at this parameter's next update."""
        return self.whole or managed.refreshes.tried_for == managed.step + 1

    @contextmanager
    def watching(self, managed: ManagedParameter, grad: Tensor | None) -> Iterator[None]:
        """Around the update of one parameter. grad: its whole gradient, where there is one."""
        refreshed = managed.refreshes.tried_for == managed.step + 1
        if refreshed:
            self._note_refresh(managed)
        if not self.whole:
            yield
            return
        name, rule = self.names[managed], managed.rule
        weight, bases = managed.param.detach().clone(), _copies(managed)
        if grad is not None:
            self._figures[f"gradient_rms/{name}"] = rms(grad)
            if not rule.projects_last:
                self._look_through(name, grad, bases)
        yield
        values, moved = managed.values(), _copies(managed)
        if grad is not None and rule.projects_last:
            self._look_through(name, grad, moved)
        if rule.moves_basis and not refreshed:
            self._note_drift(name, bases, moved)
        self._figures |= changes(name, weight, managed.param.detach())
        moments = {key: values[key] for key, spec, _ in managed.specs if spec.kind == "second_moment"}
        self._figures |= second_moments(name, moments)

    def take(self) -> dict[str, float]:
        """The figures since the last call, by name; waits for the device once."""
        figures, self._figures = self._figures, {}
        return to_host(figures)

    def _look_through(self, name: str, grad: Tensor, bases: Bases) -> None:
        if not bases:
            return
        seen, whole = projection(grad, bases), grad.double().square().sum()
        tiny = torch.finfo(torch.float64).tiny
        self._figures[f"captured_energy/{name}"] = seen.square().sum() / whole.clamp_min(tiny)
        self._figures[f"effective_rank/{name}"] = effective_rank(seen)

    def _note_refresh(self, managed: ManagedParameter) -> None:
        now = _copies(managed)
        if managed in self._bases:
            self._note_drift(self.names[managed], self._bases[managed], now)
        self._bases[managed] = now

    def _note_drift(self, name: str, old: Bases, new: Bases) -> None:
        for key, (basis, side) in new.items():
            label = name if len(new) == 1 else f"{name}.{key}"
            self._figures[f"basis_drift/{label}"] = drift(old[key][0], basis, side)


def to_host(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """0-D tensors as numbers, in one transfer."""
    if not figures:
        return {}
    return dict(zip(figures, torch.stack([figure.float() for figure in figures.values()]).tolist(), strict=True))


def short_name(name: str) -> str:
    """layers.0.self_attn.q_proj of model.layers.0.self_attn.q_proj.weight."""
    return name.removeprefix("model.").removesuffix(".weight")


def changes(name: str, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Norm of a weight, and norm and RMS of its change."""
    change = after.float() - before.float()
    return {f"weight_norm/{name}": norm(after), f"update_norm/{name}": norm(change), f"update_rms/{name}": rms(change)}


def second_moments(name: str, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extremes and mean of a parameter's second moments, by the name of the state tensor where it has several."""
    figures = {}
    for key, values in moments.items():
        label = name if len(moments) == 1 else f"{name}.{key}"
        low, high = values.float().aminmax()
        figures[f"second_moment_min/{label}"] = low
        figures[f"second_moment_mean/{label}"] = values.float().mean()
        figures[f"second_moment_max/{label}"] = high
    return figures


def _copies(managed: ManagedParameter) -> Bases:
    bases = managed.rule.bases(managed.values())
    return {key: (basis.clone(), side) for key, (basis, side) in bases.items()}
