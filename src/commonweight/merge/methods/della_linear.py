"""DELLA without the election: dropped by rank, rescaled, summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from ..dropping import drop, norms
from ..parts import combine, deltas
from ..registry import At, Density, Positive, Range, method
from .della import chances, check


@method(
    "della_linear",
    paper="DELLA-Merging, arXiv 2406.11617",
    equation="MAGPRUNE as in della; theta = theta_0 + scale sum_t w_t tau^_t",
    by=lambda config: "row",
    survey=norms(chances),
    check=check,
    normalises=lambda config: config["normalize"],
)
def della_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    density: Density = 0.5,
    epsilon: Positive = 0.15,
    scale: Annotated[float, Range()] = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    seed: int = 0,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """As della, with a weighted sum in place of election and mean. compat="mergekit": its chances and its rescaling."""
    config = {"density": density, "epsilon": epsilon, "rescale": rescale, "seed": seed, "compat": compat}
    left = drop(deltas(tensors, base), chances, at, seen, config)
    return base + combine(left, weights) * (scale / (sum(weights) if normalize else 1.0))
