"""Model Breadcrumbs: both the largest and the smallest entries of each task vector are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths import parts
from ..registry import At, Density, Range
from ..registry.steps import Cut, Merge

Gamma = Annotated[float | Sequence[float], Range(ge=0, lt=1, each=True)]
Compat = Literal["mergekit", "official"] | None


def ranks(numel: int, config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """(outliers, outliers and kept): fewer outliers go where else too few entries would be left, as in mergekit."""
    out = []
    for density, gamma in zip(config["density"], config["gamma"]):
        kept = int(density * numel)
        skip = 0 if density >= 1 else min(int(gamma * numel), numel - kept)
        out.append((skip, skip + kept))
    return tuple(out)


def scope(config: Mapping[str, Any]) -> Literal["tensor"] | None:
    return None if config["compat"] == "official" else "tensor"


survey = parts.magnitude_cuts(ranks, scope)


def by(config: Mapping[str, Any]) -> str:
    return "row" if config["compat"] == "official" else "element"


def masked(tau: Tensor, at: At, seen: Any, config: Mapping[str, Any]) -> Tensor:
    """The task vectors' middle: per tensor, or (official code) per row."""
    if config["compat"] != "official":
        outliers = parts.trim(tau, seen, at, "tensor", 0, out=torch.empty_like(tau))
        return parts.trim(tau, seen, at, "tensor", 1).sub_(outliers)
    n, out = tau.shape[-1], []
    for x, density, gamma in zip(tau, config["density"], config["gamma"]):
        rank, first = parts.ranks_in_rows(x), int(gamma * n)
        out.append(x * ((rank >= first) & (rank < first + int(density * n))))
    return torch.stack(out)


def middle(config: Mapping[str, Any], seen: Any) -> Cut | None:
    """The same as steps have it."""
    return None if config["compat"] == "official" else Cut(seen, "tensor", (0, 1))


def _steps(config: Mapping[str, Any], at: At, seen: Any) -> Merge | None:
    left = middle(config, seen)
    weights = parts.shares(config["weights"], config["scale"], config["normalize"])
    return None if left is None else Merge("onto", weights, left)


@method(
    "breadcrumbs",
    paper="Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, arXiv 2312.06795",
    equation=(
        "theta = theta_0 + alpha sum_t m_t tau_t, m_t per layer: ranks by magnitude from gamma n to (gamma + density) n"
    ),
    by=by,
    survey=survey,
    normalises=lambda config: config["normalize"],
    steps=_steps,
    same=("mergekit",),
)
def breadcrumbs(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    density: Density = 0.15,
    gamma: Gamma = 0.01,
    scale: Annotated[float, Range()] = 1.0,
    normalize: bool = False,
    compat: Literal["official"] | None = None,
) -> Tensor:
    """Sum of the masked task vectors. gamma: share of the largest that goes; density: share that stays (of the rest the
    smallest go); scale: the paper's alpha. Per tensor, equal magnitudes by index.

    The paper tunes all three. Here density is where the authors' search starts (with gamma 0.006 and alpha 0.2; it goes
    through 0.05 to 0.2, 0.001 to 0.01, and 0.01 to 1), gamma the end of their range, which is mergekit's default, and
    scale 1, which leaves the sum as it is.
    compat="official": ranks within each row (the last dimension), as the authors' code has it.
    """
    left = masked(parts.deltas(tensors, base), at, seen, {"density": density, "gamma": gamma, "compat": compat})
    return parts.onto(base, left, parts.shares(weights, scale, normalize))
