"""DELLA: entries are dropped at random, small ones more often, then TIES' election."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.dropping import Dropping, drop, norms, steps
from ..maths.parts import agreeing, column, deltas, ranks_in_rows
from ..registry import At, Positive
from ..registry.steps import Merge


def chances(tau: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Chance of being kept: the paper's 1 - p_i, by rank within the row; mergekit's window is twice as wide."""
    density, epsilon = column(config["density"], tau), config["epsilon"]
    if config["compat"] == "mergekit":
        x = tau.unsqueeze(1) if tau.dim() == 2 else tau
        up = torch.stack([ranks_in_rows(t, 1 if t.dim() > 1 else 0, descending=False) for t in x]).view_as(x).float()
        n = x.shape[2] if x.dim() > 2 else x.shape[-1]
        share = (up / max(1, n - 1)).view_as(tau)
        return torch.where(density >= 1, torch.ones_like(tau), density - epsilon + share * 2 * epsilon)
    rank = torch.stack([ranks_in_rows(t) for t in tau]).float()  # 0: the largest
    chance = 1 - ((1 - density) - epsilon / 2 + epsilon * rank / tau.shape[-1])
    return torch.where(density >= 1, torch.ones_like(tau), chance)


def check(config: Mapping[str, Any], n: int) -> str | None:
    half = config["epsilon"] * (1.0 if config["compat"] == "mergekit" else 0.5)
    for d in config["density"]:
        if d < 1 and (d - half <= 0 or d + half >= 1):
            want = f"wanted {half:g} < density < {1 - half:g}"
            return f"density {d:g} with epsilon {config['epsilon']:g}: the chances leave (0, 1); {want}"
    return None


def _election(compat: Literal["mergekit"] | None, normalize: bool, **config: Any) -> dict[str, Any]:
    return {
        "elect": "weighted" if compat else "plain",
        "zero": 1 if compat else 0,
        "divide": "weights" if normalize else "one",
    }


@method(
    "della",
    paper="DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling, arXiv 2406.11617",
    equation="MAGPRUNE: p_i = p - epsilon/2 + epsilon r_i / n, tau^_i = m_i tau_i / (1 - p_i); then elect and average",
    by=lambda config: "row",
    survey=norms(chances),
    check=check,
    steps=lambda config, at, seen: Merge(
        "elect", config["weights"], steps(config, seen), scale=config["scale"], rounded=2, **_election(**config)
    ),
)
def della(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    how: Dropping,
    epsilon: Positive = 0.15,
    normalize: bool = True,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """Drop by rank in the row (r_i = 0: the largest), rescale each entry by its own chance, elect, average what agrees.

    density = 1 - p of the paper; equal magnitudes rank by index. compat="mergekit": chances density -+ epsilon over the
    row's ranks, rescaled by the tensor's L1 norms, weighted election.
    """
    config = {**vars(how), "epsilon": epsilon, "compat": compat}
    left = drop(deltas(tensors, base), chances, at, seen, config)
    return base + how.scale * agreeing(left, weights, **_election(compat, normalize))
