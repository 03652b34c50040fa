"""TSV-M: each task keeps a share of the singular vectors; together they are made orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ..parts import deltas
from ..registry import Range, method


def nearest_orthogonal(x: Tensor) -> Tensor:
    """The polar factor: the matrix with orthonormal rows or columns that is nearest to x."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


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
    where the official code would keep none. Needs: whole matrices. Cost: T + 2 SVDs a matrix.
    """
    tau = torch.stack([w * t for w, t in zip(weights, deltas(tensors, base))])
    if base.dim() != 2:
        return base + scale * tau.mean(0)
    r = max(1, min(base.shape) // len(tau))
    found = [torch.linalg.svd(t.double(), full_matrices=False) for t in tau]
    u = nearest_orthogonal(torch.cat([f.U[:, :r] for f in found], 1))
    v = nearest_orthogonal(torch.cat([f.Vh[:r] for f in found], 0))
    s = torch.cat([f.S[:r] for f in found])
    return base + scale * (u * s @ v).float()
