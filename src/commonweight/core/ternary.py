"""Ternary vectors: the signs of the largest entries times one number (ComPEFT, arXiv 2311.13171, section 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kept(numel: int, density: float) -> int:
    """How many entries stay; at least one of a vector that is not empty."""
    return min(numel, max(1, int(density * numel)))


def level(total: float, squares: float, numel: int) -> float:
    """Standard deviation of a vector (over n, not n - 1) from its sum and its sum of squares."""
    return math.sqrt(max(0.0, squares / numel - (total / numel) ** 2)) if numel else 0.0


def ternary(x: Tensor, density: float) -> tuple[Tensor, float]:
    """(signs int8 of x's shape, sigma): x is about alpha * sigma * signs, sigma the standard deviation of all of x.

    The `density` of largest magnitudes keep their sign, equal ones by index; the others are 0. alpha is the reader's
    choice, from 0.5 to 10 on a few validation rows. Cost: one sort.
    """
    flat = x.detach().float().flatten()
    order = flat.abs().sort(descending=True, stable=True).indices[: kept(len(flat), density)] if len(flat) else flat
    signs = torch.zeros(len(flat), dtype=torch.int8)
    if len(flat):
        signs[order] = flat[order].sign().to(torch.int8)
    return signs.view(x.shape), level(flat.double().sum().item(), flat.double().square().sum().item(), len(flat))
