"""TSV-M: each task keeps a share of the singular vectors; together they are made orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas, rank
from ..registry import Range


def nearest_orthogonal(x: Tensor) -> Tensor:
    """The polar factor: the matrix with orthonormal rows or columns that is nearest to x; of x's rank."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    r = rank(s)
    return u[:, :r] @ vh[:r]


@method(
    "tsv_m",
    paper="Task Singular Vectors: Reducing Task Interference in Model Merging, arXiv 2412.00081",
    equation="tau_t = U_t S_t V_t', first r/T of each, side by side; theta = theta_0 + scale polar(U) S polar(V)'",
    by=lambda config: "tensor",
    same=("official", "fusion-bench"),
)
def tsv_m(
    tensors: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], scale: Annotated[float, Range()] = 1.0
) -> Tensor:
    """Matrices through their singular vectors; every other tensor by the mean of its task vectors (both times scale).

    weights scale the task vectors first (the paper has none). More tasks than the smaller side has: one vector each,
    where the official code would keep none. A task vector of lower rank than its share, as a LoRA update, brings only
    the directions that it has, and directions that tasks have in common count once; code without this makes the rest
    up out of rounding. Needs: whole matrices. Cost: T + 2 SVDs a matrix.
    """
    tau = torch.stack([w * t for w, t in zip(weights, deltas(tensors, base))])
    if base.dim() != 2:
        return base + scale * tau.mean(0)
    share = max(1, min(base.shape) // len(tau))
    found = [torch.linalg.svd(t.double(), full_matrices=False) for t in tau]
    ranks = [min(share, rank(f.S)) for f in found]
    u = nearest_orthogonal(torch.cat([f.U[:, :r] for f, r in zip(found, ranks)], 1))
    v = nearest_orthogonal(torch.cat([f.Vh[:r] for f, r in zip(found, ranks)], 0))
    s = torch.cat([f.S[:r] for f, r in zip(found, ranks)])
    return base + scale * (u * s @ v).float()
