"""AdamW inside the gradient's largest directions, outside what earlier tasks used: CoSO's optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ..adapt.optimizers import Groups, Several

BETAS, EPS = (0.9, 0.999), 1e-8


class Projected(Optimizer):
    """For matrices (o, i). Each step: G' = G - Q Q^T G; every `gap` steps P = the first `inside` left singular vectors
    of G' and the sketch takes G' in; W -= rate P (m / (sqrt v + eps)), m and v AdamW's moments of P^T G', bias
    corrected and not turned when P changes; then the decay.

    history: Q (o, h) of each matrix, by its id; it may lack some. sketch: rank of the sketch of frequent directions, at
    most one less than the matrix has. Cost: an SVD of (o, i) every `gap` steps, and one of (o, 2 sketch).
    Source: CoSO, github.com/quinn-ch/CoSO @c7b400c (coso_projector.py, adamw.py).
    """

    def __init__(
        self,
        groups: Groups,
        decay: float,
        history: Mapping[int, Tensor],
        inside: int,
        sketch: int,
        keep: float,
        gap: int,
    ):
        super().__init__(groups, {"weight_decay": decay})
        self.how = inside, sketch, keep, gap
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) in history:
                    self.state[p]["Q"] = history[id(p)].to(p).clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group["lr"], group["weight_decay"])
        return loss

    def _step(self, w: Tensor, g: Tensor, rate: float, decay: float) -> None:
        inside, sketch, keep, gap = self.how
        held = self.state[w]
        if (q := held.get("Q")) is not None:
            g = g - q @ (q.T @ g)
        n = int(held.get("n", 0))
        if "P" not in held or n % gap == 0:
            u, s, _ = torch.linalg.svd(g, full_matrices=False)
            held["P"] = u[:, :inside].contiguous()
            held["sketch"] = sketched(held.get("sketch"), u, s, sketch, keep)
        small = held["P"].T @ g
        if "exp_avg" not in held:
            held["exp_avg"], held["exp_avg_sq"] = torch.zeros_like(small), torch.zeros_like(small)
        n += 1
        held["n"] = float(n)
        m, v = held["exp_avg"], held["exp_avg_sq"]
        m.lerp_(small, 1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(small, small, value=1 - BETAS[1])
        move = (m / (1 - BETAS[0] ** n)) / ((v / (1 - BETAS[1] ** n)).sqrt() + EPS)
        w.sub_(held["P"] @ move, alpha=rate)
        w.mul_(1 - rate * decay)


def sketched(old: Tensor | None, u: Tensor, s: Tensor, rank: int, keep: float) -> Tensor:
    """Frequent directions: (o, r) whose columns stand for all gradients so far. u (o, k), s (k,): of the new one."""
    new = shrunk(u, s, rank)
    if old is None:
        return new
    both, values, _ = torch.linalg.svd(torch.cat([keep * old, new], 1), full_matrices=False)
    return shrunk(both, values, rank)


def shrunk(u: Tensor, s: Tensor, rank: int) -> Tensor:
    """U_r sqrt(max(S_j^2 - S_{r+1}^2, 0)); nothing is taken off where there is no S_{r+1}."""
    off = s[rank].square() if len(s) > rank else s.new_zeros(())
    return u[:, :rank] * (s[:rank].square() - off).clamp(min=0).sqrt()


def grown(q: Tensor | None, sketch: Tensor, threshold: float) -> Tensor:
    """Q after a task: the sketch's directions whose energies, added up, stay below the threshold come behind."""
    u, s, _ = torch.linalg.svd(sketch, full_matrices=False)
    k = int(((s.square() / s.square().sum()).cumsum(0) < threshold).sum()) if s.any() else 0
    return u[:, :k] if q is None else torch.cat([q.to(u), u[:, :k]], 1)


def maker(history: Mapping[str, Tensor], suffix: str, **how: Any) -> Any:
    """Of a run: pools whose name ends so are `Projected`, all others have AdamW."""

    def make(groups: Groups, decay: float, names: Mapping[int, str]) -> Optimizer:
        mine = [{**g, "params": [p for p in g["params"] if names[id(p)].endswith(suffix)]} for g in groups]
        rest = [{**g, "params": [p for p in g["params"] if not names[id(p)].endswith(suffix)]} for g in groups]
        q = {i: history[n] for i, n in names.items() if n in history}
        inside = Projected([g for g in mine if g["params"]], decay, q, **how)
        rest = [g for g in rest if g["params"]]
        return Several([inside, AdamW(rest, weight_decay=decay)]) if rest else inside

    return make
