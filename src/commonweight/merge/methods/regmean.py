"""RegMean: the linear layer whose outputs are nearest to those of every model on that model's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine
from ..registry import At, Beside, Share

Grams = Annotated[Any, Beside("gram")]


def solve(left: Tensor, right: Tensor) -> Tensor:
    """W with W left = right, for a symmetric left (d_in, d_in) that may be singular: the shortest such W."""
    solution, info = torch.linalg.solve_ex(left, right.T)
    if int(info) == 0 and solution.isfinite().all() and (left @ solution - right.T).norm() <= 1e-6 * right.norm():
        return solution.T
    return right @ torch.linalg.pinv(left, hermitian=True)


def shrunk(gram: Tensor, alpha: float) -> Tensor:
    """What is off the diagonal, times alpha; float64."""
    gram = gram.double()
    return alpha * gram + (1 - alpha) * gram.diagonal().diag()


@method(
    "regmean",
    paper="Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv 2212.09849",
    equation="W = (sum_t w_t W_t G_t) (sum_t w_t G_t)^-1, G_t = X_t'X_t, its off-diagonal times alpha (section 3.2)",
    base="none",
    weight="1/T",
    data="statistics",
    by=lambda config: "tensor",
    normalises=lambda config: True,
    same=("fusion-bench", "official"),
)
def regmean(
    tensors: Sequence[Tensor],
    base: None,
    *,
    weights: Sequence[float],
    at: At,
    statistics: Grams,
    alpha: Share = 0.9,
) -> Tensor:
    """statistics: one file a model with `gram` of its linear layers; every other tensor: the weighted mean.

    alpha: the paper's shrinking of what is off the diagonal (0.9; it takes 0.1 for T5; 1: none). Grams are means over
    tokens, so that each model weighs the same however many rows it saw; the paper sums over equal numbers of rows,
    which is the same. Solved in float64; where the sum of Grams is singular, the shortest solution. Needs: whole
    matrices. Cost: one solve of (d_in, d_in) a matrix.
    """
    if not all(s.has("gram", at.name) for s in statistics):
        return combine(tensors, [w / sum(weights) for w in weights])
    grams = [shrunk(s.whole("gram", at.name, (t.shape[-1],) * 2), alpha) for s, t in zip(statistics, tensors)]
    left = torch.stack([w * g for w, g in zip(weights, grams, strict=True)]).sum(0)
    right = torch.stack([w * t.double() @ g for w, t, g in zip(weights, tensors, grams, strict=True)]).sum(0)
    return solve(left, right).float()
