"""Task arithmetic: the base and a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas, onto, shares
from ..registry import Range
from ..registry.steps import Merge


@method(
    "task_arithmetic",
    paper="Editing Models with Task Arithmetic, arXiv 2212.04089",
    equation="theta = theta_0 + scale sum_t w_t tau_t",
    normalises=lambda config: config["normalize"],
    same=("mergekit", "peft", "fusion-bench", "official"),
    steps=lambda config, at, seen: Merge("onto", shares(config["weights"], config["scale"], config["normalize"])),
)
def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    scale: Annotated[float, Range()] = 1.0,
    normalize: bool = False,
) -> Tensor:
    """Adds (negative weights: subtracts) task vectors. scale is the paper's lambda, which it tunes on held-out data.

    Linear in every model. normalize divides by the sum of the weights.
    """
    return onto(base, deltas(tensors, base), shares(weights, scale, normalize))
