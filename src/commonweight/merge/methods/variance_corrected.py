"""Variance-corrected averaging: the average, with the spread that its models had."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine, sums
from ..registry import At

RUNNING = re.compile(r"running_mean|running_var|num_batches_tracked")  # what is no weight


def _look(
    tensors: Sequence[Tensor], base: Tensor | None, *, weights: Sequence[float], **config: Any
) -> dict[str, Tensor]:
    x = torch.stack(list(tensors))
    every = torch.cat([x, combine(x, weights)[None] / sum(weights)]).flatten(1).double()
    return {"sums": torch.stack([every.sum(1), every.square().sum(1)])}


@method(
    "variance_corrected",
    paper="Vanishing Variance Problem in Fully Decentralized Neural-Network Systems, arXiv 2404.04616",
    equation=(
        "theta = mu + (theta_avg - mu) sqrt(sum_t w_t var(theta_t) / var(theta_avg)), w summing to 1, "
        "mu the mean of theta_avg"
    ),
    base="none",
    normalises=lambda config: True,
    survey=sums(_look, lambda config: "tensor"),
)
def variance_corrected(
    tensors: Sequence[Tensor], base: Tensor | None, *, weights: Sequence[float], at: At, seen: Any
) -> Tensor:
    """Averaging models that do not correlate shrinks the spread of each tensor; this scales it back, tensor by tensor.

    Single numbers and running statistics of normalisations are averaged as they are; weights: how much each model
    counts in the average, and its variance in the wanted one.
    Source: arXiv 2404.04616, algorithm 3, as two public implementations have it (the paper's text was not available):
    biases and norms are corrected too. One of them adds 1e-4 to both variances.
    """
    mean = combine(tensors, weights) / sum(weights)
    if math.prod(at.shape) < 2 or RUNNING.search(at.name):
        return mean
    n = math.prod(at.shape)
    middle = seen["sums"][0] / n
    variance = seen["sums"][1] / n - middle.square()
    wanted = (torch.tensor(weights, dtype=torch.float64) * variance[:-1]).sum() / sum(weights)
    if variance[-1] <= 0 or wanted <= 0:
        return mean
    mu = middle[-1].item()
    return mu + (mean - mu) * (wanted / variance[-1]).sqrt().item()
