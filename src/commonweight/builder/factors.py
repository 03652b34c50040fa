"""First values of factors and dictionaries: the best approximations of one weight, or of several at once.

Signs of singular vectors are free; each is turned so that its largest entry in V, or in
the weights of its matrix, is > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Rng, serial
from ..core.spectrum import svd, turned


@serial
@dataclass(frozen=True)
class Components:
    """Components of a weight's SVD. part "A": S^power V^T (r, in); "B": U S^power (out, r); "d": S (r,).

    at: which components, by rank of their singular values; () the largest. Cost: one thin SVD for all parts.
    """

    derived = True
    of: str
    part: str
    power: float = 0.0
    transposed: bool = False
    at: tuple[int, ...] = ()

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        u, s, v = base.once(("svd", self.of, self.transposed), lambda: self._svd(base))
        at = list(self.at or range(shape[1] if self.part == "B" else shape[0]))
        scale = s[at] ** self.power
        if self.part == "d":
            return s[at].clone()
        return u[:, at] * scale if self.part == "B" else (scale[:, None] * v[at]).contiguous()

    def _svd(self, base: Any) -> tuple[Tensor, Tensor, Tensor]:
        w = base.stored(self.of).float()
        return svd(w.mT if self.transposed else w)


@serial
@dataclass(frozen=True)
class Dictionary:
    """A dictionary of S matrices for L weights of one shape, and their weights, by the SVD of [vec W_1 .. vec W_L].

    row: None, the dictionary (S, *shape); else the weights (S,) of the weight of that number. Their product is the best
    one of rank S; both are scaled so that a matrix of the dictionary has the norm of the usual weight. Cost: L^2 inner
    products of weights, and an eigendecomposition (L, L).
    """

    derived = True
    of: tuple[str, ...]
    row: int | None = None

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        q, s, norm = base.once(("principal", self.of), lambda: self._decomposed(base))
        n = shape[0]
        if self.row is not None:
            return q[self.row, :n] * s[:n] / norm
        out = torch.zeros(shape, device=q.device)
        for i, name in enumerate(self.of):
            w = base.stored(name).float()
            for k in range(n):
                if s[k] > 0:
                    out[k] += w * (q[i, k] / s[k] * norm)
        return out

    def _decomposed(self, base: Any) -> tuple[Tensor, Tensor, Tensor]:
        flat = [base.stored(n).double().flatten() for n in self.of]
        gram = torch.stack([torch.stack([a @ b for b in flat]) for a in flat])
        values, q = torch.linalg.eigh(gram)
        values, q = values.flip(0).clamp_min(0), q.flip(1)
        q = turned(q.T).T
        values = torch.where(values > 1e-12 * values[0], values, 0.0)
        return q.float(), values.sqrt().float(), (values.sum() / len(flat)).sqrt().float()


@serial
@dataclass(frozen=True)
class Tucker:
    """Factors that several weights have in common, W_l ~ U C_l V, and the core of one: a Tucker-2 decomposition.

    part "B": U (out, k), orthonormal; "A": V (r, in), orthonormal; "M": C (k, r) of the weight `core`. Begins with the
    higher-order SVD, then `rounds` of alternating least squares. Cost: eigendecompositions of (out, out) and (in, in).
    """

    derived = True
    of: tuple[str, ...]
    part: str
    ranks: tuple[int, int]
    core: str = ""
    transposed: bool = False
    rounds: int = 2

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        u, v = base.once(("tucker", self.of, self.ranks, self.transposed, self.rounds), lambda: self._factors(base))
        if self.part == "M":
            return u.T @ self._weight(base, self.core) @ v.T
        return u.clone() if self.part == "B" else v.clone()

    def _weight(self, base: Any, name: str) -> Tensor:
        w = base.stored(name).float()
        return w.mT if self.transposed else w

    def _factors(self, base: Any) -> tuple[Tensor, Tensor]:
        weights = [self._weight(base, n) for n in self.of]
        k, r = self.ranks
        u = _leading(sum(w @ w.T for w in weights), k)
        v = _leading(sum(w.T @ w for w in weights), r).T
        for _ in range(self.rounds):
            u = _leading(sum((h := w @ v.T) @ h.T for w in weights), k)
            v = _leading(sum((h := u.T @ w).T @ h for w in weights), r).T
        return u.contiguous(), v.contiguous()


def _leading(gram: Any, n: int) -> Tensor:
    """Eigenvectors of the n largest eigenvalues, as columns."""
    q = torch.linalg.eigh(gram)[1].flip(1)[:, :n]
    return turned(q.T).T
