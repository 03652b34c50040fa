"""Karcher mean: the point on the sphere that is nearest to all models' directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine, gram
from ..registry import Count, Positive


@method(
    "karcher",
    paper="Riemannian center of mass and mollifier smoothing, CPAM 1977 (Karcher); in mergekit: arXiv 2603.04972",
    equation="m = argmin_m sum_t w_t angle(m, u_t)^2, u_t = theta_t / |theta_t|; theta = (sum_t w_t |theta_t|) m",
    base="none",
    survey=gram(),
    normalises=lambda config: True,
)
def karcher(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    weights: Sequence[float],
    seen: Any,
    max_iter: Count = 10,
    tol: Positive = 1e-5,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """Weighted mean of directions on the sphere by tangent steps, tensor by tensor, scaled to the mean length.

    Runs on the inner products alone: every iterate lies in the span of the models. tol: of angles and lengths on the
    unit sphere. Tensors of zero have no direction and take no part in it; if the weights of the others cancel, the
    weighted mean is taken. mergekit has no weights (all equal here is the same); compat="mergekit" leaves tensors
    shorter than tol out, and gives zeros where all are.
    """
    g, norms = seen["gram"], seen["gram"].diagonal().sqrt()
    w = torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum()
    live = norms > (tol if compat else 0.0)
    if len(tensors) == 1:
        return tensors[0].clone()
    if not live.any():
        return torch.zeros_like(tensors[0])
    unit = torch.where(live, 1 / norms.clamp(min=1e-300), torch.zeros_like(norms))
    c, alpha = g * unit[:, None] * unit, torch.where(live, w, torch.zeros_like(w))
    if alpha.sum().abs() <= 1e-6 * alpha.abs().sum():
        return combine(tensors, w)
    alpha = alpha / alpha.sum()
    m = alpha.clone()
    length = (m @ c @ m).clamp(min=0).sqrt()
    m = m / length if length >= tol else torch.eye(len(w), dtype=torch.float64)[int(live.int().argmax())]
    for _ in range(max_iter):
        dots = (c @ m).clamp(-1, 1)
        theta = dots.acos()
        moves = live & (theta >= tol)
        pull = torch.where(moves, alpha * theta / theta.sin().clamp(min=1e-12), torch.zeros_like(alpha))
        tangent = pull - (pull * dots).sum() * m
        size = (tangent @ c @ tangent).clamp(min=0).sqrt()
        if size < tol:
            break
        m = size.cos() * m + size.sin() / size * tangent
        m = m / (m @ c @ m).sqrt()
    return combine(tensors, (w * norms).sum() * m * unit)
