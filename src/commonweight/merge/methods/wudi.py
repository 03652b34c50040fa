"""WUDI: the merged task vector that disturbs each task's own inputs least, the inputs guessed from the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas
from ..registry import Count, Positive, Range
from .regmean import solve


def descend(start: Tensor, left: Tensor, right: Tensor, steps: int, lr: float) -> Tensor:
    """Adam on sum_t |(tau - tau_t) tau_t'|^2 / |tau_t|^2, whose gradient is 2 (tau left - right). float32."""
    tau = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([tau], lr=lr)
    for _ in range(steps):
        tau.grad = 2 * (tau.detach() @ left - right)
        adam.step()
    return tau.detach()


@method(
    "wudi",
    paper="Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors, "
    "arXiv 2503.08099",
    equation="min over tau of sum_t |(tau - tau_t) tau_t'|_F^2 / |tau_t|_F^2, by Adam from sum_t tau_t",
    by=lambda config: "tensor",
    same=("official", "fusion-bench"),
)
def wudi(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    steps: Count = 300,
    lr: Positive = 1e-5,
    solver: Literal["adam", "exact"] = "adam",
    scale: Annotated[float, Range()] = 1.0,
) -> Tensor:
    """Matrices as above; every other tensor: the mean of the task vectors, as in the authors' code. Takes no weights.

    solver: "adam" is the paper's (300 steps of 1e-5 from the sum: the end is not the minimum, and is meant not to be);
    "exact" is the minimum, by one solve. The gradient is written out by Gram matrices, so that a step costs
    2 d_out d_in^2 whatever T. Leave embeddings and heads out where the authors do. Needs: whole matrices.
    Source: arXiv 2503.08099 and the authors' code; lr is that of FusionBench's copy, their script for RoBERTa has 2e-5.
    """
    tau = deltas(tensors, base)
    if base.dim() != 2:
        return base + scale * tau.mean(0)
    size = tau.flatten(1).double().square().sum(1).clamp(min=1e-30)
    grams = [t.double().T @ t.double() / n for t, n in zip(tau, size)]
    left = torch.stack(grams).sum(0)
    right = torch.stack([t.double() @ g for t, g in zip(tau, grams)]).sum(0)
    if solver == "exact":
        return base + scale * solve(left, right).float()
    return base + scale * descend(tau.sum(0), left.float(), right.float(), steps, lr)
