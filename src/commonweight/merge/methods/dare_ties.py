"""DARE with TIES' election: random dropping in place of trimming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from ..call.declare import method
from ..maths.dropping import Dropping, drop, norms, steps
from ..maths.parts import agreeing, deltas
from ..registry import At
from ..registry.steps import Merge
from .dare_linear import chances


def _election(compat: Literal["mergekit", "peft"] | None, normalize: bool | None, **config: Any) -> dict[str, Any]:
    mean = compat != "mergekit" if normalize is None else normalize
    return {
        "elect": "weighted" if compat == "mergekit" else "plain",
        "zero": 1 if compat else 0,
        "divide": "one" if not mean else "count" if compat == "peft" else "weights",
    }


@method(
    "dare_ties",
    paper="Language Models are Super Mario (DARE), arXiv 2311.03099; TIES-Merging, arXiv 2306.01708",
    equation="tau^ = m tau / density; theta = theta_0 + scale * mean of the tau^_t whose sign is that of their sum",
    survey=norms(chances),
    steps=lambda config, at, seen: Merge(
        "elect", config["weights"], steps(config, seen), scale=config["scale"], rounded=2, **_election(**config)
    ),
)
def dare_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    how: Dropping,
    normalize: bool | None = None,
    compat: Literal["mergekit", "peft"] | None = None,
) -> Tensor:
    """Drop and rescale, elect signs, merge those that agree. No further trimming (the paper's own runs trim after it).

    normalize: divide by the agreeing weights (default), or sum (default of mergekit).
    compat: "mergekit": rescaled by L1 norms, weighted election, sum; "peft": unweighted election, over the count.
    """
    config = {**vars(how), "compat": compat}
    left = drop(deltas(tensors, base), chances, at, seen, config)
    return base + how.scale * agreeing(left, weights, **_election(compat, normalize))
