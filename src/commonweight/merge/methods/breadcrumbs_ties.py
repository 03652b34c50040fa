"""Model Breadcrumbs' masks with TIES' election."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import Tensor

from ..call.declare import method
from ..maths import parts
from ..registry import At, Density, Range
from ..registry.steps import Merge
from .breadcrumbs import Compat, Gamma, by, masked, middle, survey


def _election(compat: Compat, normalize: bool | None, **config: Any) -> dict[str, Any]:
    mean = compat != "mergekit" if normalize is None else normalize
    return {
        "elect": "weighted" if compat == "mergekit" else "plain",
        "zero": 1 if compat == "mergekit" else 0,
        "divide": "weights" if mean else "one",
    }


def _steps(config: Mapping[str, Any], at: At, seen: Any) -> Merge | None:
    left = middle(config, seen)
    if left is None:
        return None
    return Merge("elect", config["weights"], left, scale=config["scale"], rounded=2, **_election(**config))


@method(
    "breadcrumbs_ties",
    paper="Model Breadcrumbs, arXiv 2312.06795; TIES-Merging, arXiv 2306.01708",
    equation="tau^_t = m_t tau_t as in breadcrumbs; theta = theta_0 + scale * mean of the tau^_t that agree in sign",
    by=by,
    survey=survey,
    steps=_steps,
)
def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    density: Density = 0.15,
    gamma: Gamma = 0.01,
    scale: Annotated[float, Range()] = 1.0,
    normalize: bool | None = None,
    compat: Compat = None,
) -> Tensor:
    """Masks both tails, elects signs, merges what agrees. normalize: mean (default), or sum (default of mergekit).
    density and gamma: as in breadcrumbs, and no paper's for this pair.

    compat="mergekit": weighted election, zero counts as plus, sum; "official": masks per row.
    """
    left = masked(parts.deltas(tensors, base), at, seen, {"density": density, "gamma": gamma, "compat": compat})
    return base + scale * parts.agreeing(left, weights, **_election(compat, normalize))
