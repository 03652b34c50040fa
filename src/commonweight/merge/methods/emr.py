"""EMR: one unified task vector; per task a mask and one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas, sums
from ..registry import At
from .tall_masks import Task, check


def elect(tau: Tensor) -> tuple[Tensor, Tensor]:
    """(unified task vector (*shape), masks (T, *shape))."""
    sign = torch.where(tau.sum(0) > 0, 1.0, -1.0)
    largest = (tau * sign).clamp(min=0).amax(0)
    return sign * largest, tau * sign > 0


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, **config: Any) -> dict[str, Tensor]:
    tau = deltas(tensors, base)
    unified, masks = elect(tau)
    size = math.prod(at.shape) if config["compat"] else 1
    pair = [tau.abs(), (masks * unified).abs()]
    return {"l1": torch.stack([x.flatten(1).double().sum(1) / size for x in pair])}


@method(
    "emr",
    paper="EMR-Merging: Tuning-Free High-Performance Model Merging, arXiv 2405.17461",
    equation=(
        "tau_uni = sign(sum tau) max |tau_t| of that sign; M_t = [tau_t tau_uni > 0]; l_t = |tau_t|_1 / |M_t tau_uni|_1"
    ),
    survey=sums(_look, lambda config: "model"),
    check=check,
)
def emr(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    seen: Any,
    task: Task,
    compat: Literal["official", "fusion-bench"] | None = None,
) -> Tensor:
    """The model of one task: theta_0 + l_t M_t tau_uni. A sum of zero elects minus, as in the authors' code.

    compat="official" (and "fusion-bench"): the rescaler is a ratio of sums of each tensor's MEAN, so that small tensors
    weigh as much as large ones; the paper's formula sums over parameters.
    """
    unified, masks = elect(deltas(tensors, base))
    before, after = seen["l1"][:, task].tolist()
    return base + (before / after if after else 1.0) * masks[task] * unified
