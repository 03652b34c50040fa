"""DELLA without the election: dropped by rank, rescaled, summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from ..call.declare import method
from ..maths.dropping import Dropping, drop, norms, steps
from ..maths.parts import deltas, onto, shares
from ..registry import At, Positive
from ..registry.steps import Merge
from .della import chances, check


@method(
    "della_linear",
    paper="DELLA-Merging, arXiv 2406.11617",
    equation="MAGPRUNE as in della; theta = theta_0 + scale sum_t w_t tau^_t",
    by=lambda config: "row",
    survey=norms(chances),
    check=check,
    steps=lambda config, at, seen: Merge(
        "onto", shares(config["weights"], config["scale"], config["normalize"]), steps(config, seen)
    ),
    normalises=lambda config: config["normalize"],
)
def della_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    how: Dropping,
    epsilon: Positive = 0.15,
    normalize: bool = False,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """As della, with a weighted sum in place of election and mean. compat="mergekit": its chances and its rescaling."""
    config = {**vars(how), "epsilon": epsilon, "compat": compat}
    left = drop(deltas(tensors, base), chances, at, seen, config)
    return onto(base, left, shares(weights, how.scale, normalize))
