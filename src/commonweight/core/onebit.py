"""Two levels for the numbers of a matrix (Bi-LoRA, arXiv 2307.16867, section 3)."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

HALF = NormalDist().inv_cdf(0.75)  # 0.6745: the median of each half of a normal distribution
EPS = 1e-5  # beside the standard deviation, as in the released code


def spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation over n - 1) of the last two dimensions, kept; of all of a vector. One number: 0."""
    dims = (-2, -1) if x.dim() > 1 else (-1,)
    if x.shape[dims[0] :].numel() < 2:
        return x.mean(dims, keepdim=True), torch.zeros_like(x.mean(dims, keepdim=True))
    return x.mean(dims, keepdim=True), x.std(dims, keepdim=True)


def onebit(x: Tensor) -> Tensor:
    """x at its two levels, as the forward pass of Bi-LoRA has it; gradients pass straight through the sign, and through
    mean and deviation.

    Shapes: (..., r, d), each matrix with levels of its own. z = (x - m) / (s + 1e-5), x' = s z' + m, z' = -+0.6745.
    """
    mean, deviation = spread(x)
    z = (x - mean) / (deviation + EPS)
    side = torch.where(x >= mean, HALF, -HALF).to(x.dtype)
    return (side + (z - z.detach())) * deviation + mean  # exactly two values
