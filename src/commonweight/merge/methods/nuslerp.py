"""NuSLERP: SLERP with two weights, on task vectors where there is a base, by tensor, row or column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine, deltas, gram
from .slerp import arc

NEAR = 1 - 1e-12


@method(
    "nuslerp",
    paper="mergekit, 'NuSLERP' (no paper)",
    equation="tau = slerp(tau_a, tau_b; t = w_b / (w_a + w_b)); theta = theta_0 + tau",
    base="optional",
    models=(2, 2),
    by=lambda config: {"tensor": "element", "row": "row", "column": "tensor"}[config["over"]],
    survey=gram(lambda config: "tensor" if config["over"] == "tensor" else None),
    same=("mergekit",),
)
def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    weights: Sequence[float],
    seen: Any,
    over: Literal["tensor", "row", "column"] = "tensor",
) -> Tensor:
    """Spherical interpolation of two task vectors (of two models, without a base), by weights.

    over: one angle for the tensor, for each row (last dimension), or for each column (first dimension): mergekit's
    nuslerp_flatten=True; nuslerp_flatten=False; and that with nuslerp_row_wise=True. Weights that sum to zero: the
    middle.
    """
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    x = deltas(tensors, base)
    if over == "tensor":
        g = seen["gram"]
        out = combine(x, arc(t, (g[0, 0].sqrt().item(), g[1, 1].sqrt().item()), g[0, 1].item(), NEAR))
    else:
        out = _rows(x, t, -1 if over == "row" else 0)
    return out if base is None else base + out


def _rows(x: Tensor, t: float, dim: int) -> Tensor:
    a, b = x.double()
    norm = a.norm(dim=dim, keepdim=True).clamp(min=1e-7) * b.norm(dim=dim, keepdim=True).clamp(min=1e-7)
    cosine = ((a * b).sum(dim, keepdim=True) / norm).clamp(-1, 1)
    near = cosine.abs() > NEAR
    theta = torch.where(near, torch.ones_like(cosine), cosine.acos())
    ca = torch.where(near, torch.full_like(theta, 1 - t), ((1 - t) * theta).sin() / theta.sin())
    cb = torch.where(near, torch.full_like(theta, t), (t * theta).sin() / theta.sin())
    return (ca * a + cb * b).float()
