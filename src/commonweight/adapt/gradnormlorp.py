"""GradNormLoRP: whole weights, moved by gradients that are normalised row by row and projected to a low rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..bind import Shift
from ..core import CommonweightError
from ..host import Tenant

RANK, GAP, SCALE, EPS = 4, 500, 4.0, 1e-6  # of the released script for fine-tuning
BETAS = (0.9, 0.999)
TINY = 1e-12  # length of a row of zeros


def weights(tenants: Sequence[Tenant]) -> dict[Tensor, Callable[[], Tensor]]:
    """Each pool that is a whole weight's change, and the frozen weight (out, inp) under it.

    Raises: CommonweightError where a tenant has none: the optimizer moves weights, not factors of a change.
    """
    found: dict[Tensor, Callable[[], Tensor]] = {}
    for t in tenants:
        mine = {
            t.pools[use.reads["dw"].pools[0]]: _frozen(t, use.site)
            for use in t.plan.uses
            if isinstance(use.bind, Shift) and use.bind.scale == 1.0 and "dw" in use.reads
            and len(use.reads["dw"].pools) == 1 and t.pools[use.reads["dw"].pools[0]].dim() == 2
        }  # fmt: skip
        if not mine:
            raise CommonweightError(
                f"gradnormlorp: {t.method.name} trains no whole weights, which it projects the gradients of; take the "
                "method full, or another optimizer"
            )
        found |= mine
    return found


def _frozen(tenant: Tenant, site: str) -> Callable[[], Tensor]:
    base = None if tenant.base is None else tenant.base()
    if base is None:
        raise CommonweightError(f"gradnormlorp: {site}: it wants the base's weight, and no base is at hand")
    return lambda: base.weight(site).detach().float()


class GradNormLoRP(Optimizer):
    """One step on a weight w = w0 + dw with rows v of lengths g: G = dL/dw, u = v / |v|; G is projected on its first r
    singular vectors of the shorter side, P anew every `GAP` steps; Adam of the projected G moves v, Adam of sum(G u)
    moves g, and w = g u afterwards.

    Shapes: dw (out, inp). State: v as w, P (r, short side), four moments, (out, r) or (r, inp) and (out, 1).
    Cost: an SVD a weight every `GAP` steps; two products of rank r a step.
    Source: arXiv 2412.19616, whose text could not be read, and its code at 66c8e76 (LowRankWeightNormAdamW.py of
    github.com/Jhhuangkay/Gradient-Weight-normalized-Low-rank-Projection-for-Efficient-LLM-Training), whose steps these
    are: the gradient of v has no projection on the tangent of the sphere, and g begins each step as the length of v, so
    that a trained length lasts one pass.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], frozen: Mapping[Tensor, Callable[[], Tensor]], decay: float
    ):
        self.frozen = frozen
        super().__init__([dict(g) for g in groups], {"lr": 1e-3, "weight_decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, self.state[p], group["lr"], group["weight_decay"])
        return loss

    def _move(self, p: Tensor, state: dict[str, Any], lr: float, decay: float) -> None:
        w0, G, t = self.frozen[p](), p.grad.float(), state.get("step", 0)  # type: ignore[union-attr]
        v = state["v"] if "v" in state else w0 + p
        g = v.norm(dim=1, keepdim=True).clamp_(min=TINY)
        along = (G * (v / g)).sum(1, keepdim=True)
        right = G.shape[0] >= G.shape[1]
        if t % GAP == 0:
            U, _, V = torch.linalg.svd(G, full_matrices=False)
            state["P"] = (V[:RANK] if right else U[:, :RANK].mT).contiguous()
        P = state["P"]
        low = G @ P.mT if right else P @ G
        size = lr * math.sqrt(1 - BETAS[1] ** (t + 1)) / (1 - BETAS[0] ** (t + 1))
        back = _adam(state, "v", low)
        v = v - size * SCALE * (back @ P if right else P.mT @ back)
        g = g - size * _adam(state, "g", along)
        v, g = v * (1 - lr * decay), g * (1 - lr * decay)
        state.update(v=v, step=t + 1)
        p.copy_(g * (v / v.norm(dim=1, keepdim=True).clamp_(min=TINY)) - w0)


def _adam(state: dict[str, Any], of: str, grad: Tensor) -> Tensor:
    """Adam's direction without its correction, which the step's size has."""
    first, second = (state.setdefault(f"{k}_{of}", torch.zeros_like(grad)) for k in ("exp_avg", "exp_avg_sq"))
    first.lerp_(grad, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    return first / second.sqrt().add_(EPS)
