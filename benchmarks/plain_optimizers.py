"""Plain per-tensor transcriptions of the low-rank methods' equations: the peers of benchmarks/optimizer_step.py.

They are what a reader of the papers would write first: a Python loop, torch calls in the weights' dtype, a full SVD in
float32, autograd through the n x n projector, eight products for LDAdam. Nothing of the project uses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class PlainAdam:
    """AdamW on the tensors that are not projected, operation by operation."""

    def __init__(self, params: Sequence[Tensor], lr: float = 1e-3) -> None:
        self.params, self.lr, self.t = list(params), lr, 0
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        self.t += 1
        for p, m, v in zip(self.params, self.m, self.v, strict=True):
            assert p.grad is not None
            p.sub_(adam_step(p.grad, m, v, self.t) * self.lr)


def adam_step(g: Tensor, m: Tensor, v: Tensor, t: int, beta1: float = 0.9, beta2: float = 0.999) -> Tensor:
    """The step of Adam before lr; m and v in place."""
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    return m / (v.sqrt() + 1e-6) * (math.sqrt(1 - beta2**t) / (1 - beta1**t))


class PlainGaLore:
    """GaLore with AdamW: full SVD every `gap` updates, projection, Adam, lift."""

    def __init__(self, params: Sequence[Tensor], rank: int = 128, gap: int = 200, lr: float = 1e-2) -> None:
        self.params, self.rank, self.gap, self.lr, self.t = list(params), rank, gap, lr, 0
        self.basis: list[Tensor | None] = [None] * len(self.params)
        self.m: list[Tensor | None] = [None] * len(self.params)
        self.v: list[Tensor | None] = [None] * len(self.params)

    def refresh(self) -> None:
        """The bases from the gradients at hand."""
        for i, p in enumerate(self.params):
            assert p.grad is not None
            u, _, vh = torch.linalg.svd(p.grad.float(), full_matrices=False)
            basis = vh[: self.rank] if p.shape[0] >= p.shape[1] else u[:, : self.rank]
            self.basis[i] = basis.to(p.dtype)

    def moment_step(self, i: int, r: Tensor) -> Tensor:
        """Adam in the low-rank space."""
        if self.m[i] is None:
            self.m[i], self.v[i] = torch.zeros_like(r), torch.zeros_like(r)
        m, v = self.m[i], self.v[i]
        assert m is not None and v is not None
        return adam_step(r, m, v, self.t)

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        if self.t % self.gap == 0:
            self.refresh()
        self.t += 1
        for i, p in enumerate(self.params):
            basis, g = self.basis[i], p.grad
            assert basis is not None and g is not None
            right = p.shape[0] >= p.shape[1]
            n = self.moment_step(i, g @ basis.T if right else basis.T @ g)
            p.sub_((n @ basis if right else basis @ n) * (0.25 * self.lr))


class PlainOnlineSubspace(PlainGaLore):
    """Online Subspace Descent with autograd through the n x n projector and torch's AdamW on the basis."""

    def step(self) -> None:
        """One update."""
        if self.t == 0:
            self.refresh()
            for basis in self.basis:
                assert basis is not None
                basis.requires_grad_(True)
            self.inner = torch.optim.AdamW([b for b in self.basis if b is not None], lr=1 / self.gap)
        self.t += 1
        for i, p in enumerate(self.params):
            basis, g = self.basis[i], p.grad
            assert basis is not None and g is not None
            right = p.shape[0] >= p.shape[1]
            with torch.no_grad():
                n = self.moment_step(i, g @ basis.T if right else basis.T @ g)
                p.sub_((n @ basis if right else basis @ n) * (0.25 * self.lr))
            h = g / g.norm()
            projector = basis.T @ basis if right else basis @ basis.T
            ((h @ projector if right else projector @ h) - h).square().sum().backward()
        self.inner.step()
        self.inner.zero_grad()


class PlainLDAdam:
    """LDAdam as published: eight products and a QR an update."""

    def __init__(self, params: Sequence[Tensor], rank: int = 128, lr: float = 1e-3, rho: float = 0.908) -> None:
        self.params, self.rank, self.lr, self.rho, self.t = list(params), rank, lr, rho, 0
        self.state: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update; works on transposes so that every basis is on the left."""
        self.t += 1
        for i, p in enumerate(self.params):
            assert p.grad is not None
            turned = p.shape[0] > p.shape[1]
            w, g = (p.T, p.grad.T) if turned else (p, p.grad)
            self._update(i, w, g)

    def _update(self, i: int, w: Tensor, g: Tensor, b1: float = 0.908, b2: float = 0.99) -> None:
        if i not in self.state:
            basis = torch.linalg.svd(g.float(), full_matrices=False)[0][:, : self.rank].to(g.dtype)
            low = torch.zeros(basis.shape[1], g.shape[1], dtype=g.dtype)
            self.state[i] = (basis, low, low.clone(), torch.zeros_like(g))
        basis, m, v, error = self.state[i]
        g = g + error
        new, m2 = basis, m
        if self.t > 1:
            c1, c2 = 1 - b1 ** (self.t - 1), 1 - b2 ** (self.t - 1)
            target = self.rho * (basis @ m) / c1 + (1 - self.rho) * g
            new = torch.linalg.qr((target @ (target.T @ basis)).float())[0].to(g.dtype)
            change = new.T @ basis
            m2 = change @ m
            v = ((change.square() @ (v / c2 - (m / c1).square()) + (m2 / c1).square()).abs() * c2).to(g.dtype)
        r = new.T @ g
        error = g - new @ r + b1 / (1 - b1) * (basis @ m - new @ m2)
        m, v = b1 * m2 + (1 - b1) * r, b2 * v + (1 - b2) * r.square()
        d1, d2 = 1 - b1**self.t, 1 - b2**self.t
        w.sub_(new @ ((m / d1) / ((v / d2).sqrt() + 1e-8)) * self.lr)
        self.state[i] = (new, m, v, error)


class PlainSOAP:
    """SOAP: Adam in the eigenbases of G G' and G' G, turned by one power iteration every `frequency` updates.

    Matrices have a basis on each side of at most `longest`; the embedding's vocabulary has none.
    """

    def __init__(self, params: Sequence[Tensor], longest: int, frequency: int = 10, lr: float = 3e-3) -> None:
        self.params, self.longest, self.frequency, self.lr, self.t = list(params), longest, frequency, lr, 0
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.gram: list[dict[int, Tensor]] = [{} for _ in self.params]
        self.q: list[dict[int, Tensor]] = [{} for _ in self.params]

    @torch.no_grad()
    def step(self) -> None:
        """One update; the first makes the bases alone."""
        for i, p in enumerate(self.params):
            g = p.grad
            assert g is not None
            if self.t == 0:
                self._start(i, g.float())
            else:
                p.sub_((self._direction(i, g.float()) * self.lr).to(p.dtype))
        self.t += 1

    def _products(self, g: Tensor) -> dict[int, Tensor]:
        return {d: g @ g.T if d == 0 else g.T @ g for d in (0, 1) if g.shape[d] <= self.longest}

    def _start(self, i: int, g: Tensor) -> None:
        self.gram[i] = {d: x * 0.05 for d, x in self._products(g).items()}
        self.q[i] = {d: torch.linalg.eigh(x).eigenvectors.flip(1) for d, x in self.gram[i].items()}

    def _turn(self, i: int, x: Tensor, back: bool) -> Tensor:
        for d, q in self.q[i].items():
            turn = q if back else q.T
            x = turn @ x if d == 0 else x @ turn.T
        return x

    def _direction(self, i: int, g: Tensor) -> Tensor:
        m, v = self.m[i], self.v[i]
        seen = self._turn(i, g, back=False)
        m.lerp_(seen.to(m.dtype), 0.05)
        v.mul_(0.95).addcmul_(seen.to(v.dtype), seen.to(v.dtype), value=0.05)
        step = self._turn(i, m.float() / (v.float().sqrt() + 1e-8), back=True)
        for d, x in self._products(g).items():
            self.gram[i][d].lerp_(x, 0.05)
        if self.t % self.frequency == 0:
            self._refresh(i)
        return step * (math.sqrt(1 - 0.95**self.t) / (1 - 0.95**self.t))

    def _refresh(self, i: int) -> None:
        original = self._turn(i, self.m[i].float(), back=True)
        for d, q in self.q[i].items():
            x = self.gram[i][d]
            order = torch.argsort(torch.diagonal(q.T @ x @ q), descending=True)
            self.v[i].copy_(self.v[i].index_select(d, order))
            self.q[i][d] = torch.linalg.qr(x @ q[:, order]).Q
        self.m[i].copy_(self._turn(i, original, back=False))
