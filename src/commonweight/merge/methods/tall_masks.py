"""TALL masks: one task's weights back from the sum of all task vectors and one bit a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import column, deltas
from ..registry import Range

Threshold = Annotated[float | Sequence[float], Range(gt=0, each=True)]
Task = Annotated[int, Range(ge=0)]


def masks(tensors: Sequence[Tensor], base: Tensor, threshold: Any, compat: str | None = None) -> Tensor:
    """bool (T, *shape): where a task's own change outweighs what the other tasks add. np.packbits stores them in
    bits.
    """
    tau = deltas(tensors, base)
    own = (base - tau).abs() if compat == "fusion-bench" else tau.abs()
    return own > column(threshold, tau) * (tau.sum(0) - tau).abs()


def check(config: Mapping[str, Any], n: int) -> str | None:
    return f"task is {config['task']}; there are {n} models, counted from 0" if config["task"] >= n else None


@method(
    "tall_masks",
    paper="Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813",
    equation="m_t = [|tau_t| > threshold |tau_MTL - tau_t|], tau_MTL = sum tau_t; theta_t = theta_0 + m_t tau_MTL",
    check=check,
)
def tall_masks(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    task: Task,
    threshold: Threshold = 0.4,
    compat: Literal["fusion-bench"] | None = None,
) -> Tensor:
    """The model of one task, as its mask gives it back. threshold: the paper's lambda, from 0.2 to 0.6 by validation.

    compat="fusion-bench": what its algorithm class computes, |theta_0 - tau_t| on the left, which compares weights with
    task vectors; for reproducing its numbers only (its own helper functions have the paper's form).
    """
    mask = masks(tensors, base, threshold, compat)[task]
    return base + mask * torch.stack([t - base for t in tensors]).sum(0)
