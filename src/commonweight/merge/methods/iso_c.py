"""Iso-C: the merged task matrix with all its singular values made equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine, deltas, rank
from ..registry import Range


@method(
    "iso_c",
    paper="No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, arXiv 2502.04959",
    equation="sum_t w_t tau_t = U S V'; theta = theta_0 + scale mean(S) U V'",
    by=lambda config: "tensor",
    same=("official", "fusion-bench"),
)
def iso_c(
    tensors: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], scale: Annotated[float, Range()] = 1.0
) -> Tensor:
    """Matrices: the sum's singular values become their mean; every other tensor: the mean of its task vectors.

    weights scale the task vectors (the paper has none). A sum of lower rank r, as of LoRA updates, has r directions,
    and the mean is over them; code without this makes the others, which rounding draws, as large as those.
    Needs: whole matrices. Cost: one SVD a matrix.
    """
    tau = combine(deltas(tensors, base), weights)
    if base.dim() != 2:
        return base + scale * tau / len(tensors)
    u, s, vh = torch.linalg.svd(tau.double(), full_matrices=False)
    r = rank(s)
    return base + scale * (s[:r].sum() / max(r, 1) * u[:, :r] @ vh[:r]).float()
