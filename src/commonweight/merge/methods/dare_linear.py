"""DARE, summed: entries of the task vectors are dropped at random, the rest made larger to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ..call.declare import method
from ..maths.dropping import Dropping, drop, norms, steps
from ..maths.parts import column, deltas, onto, shares
from ..registry import At
from ..registry.steps import Merge


def chances(tau: Tensor, config: Mapping[str, Any]) -> Tensor:
    return column(config["density"], tau).expand_as(tau)


@method(
    "dare_linear",
    paper="Language Models are Super Mario (DARE), arXiv 2311.03099",
    equation="eq. (1)-(3): m ~ Bernoulli(density), tau^ = m tau / density; theta = theta_0 + scale sum_t w_t tau^_t",
    survey=norms(chances),
    normalises=lambda config: config["normalize"],
    same=("peft", "fusion-bench", "official"),
    steps=lambda config, at, seen: Merge(
        "onto", shares(config["weights"], config["scale"], config["normalize"]), steps(config, seen)
    ),
)
def dare_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    how: Dropping,
    normalize: bool = False,
    compat: Literal["mergekit"] | None = None,
) -> Tensor:
    """Drop and rescale, then a weighted sum. density = 1 - p of the paper. Unbiased: its mean is task arithmetic.

    What is dropped depends on (seed, tensor name, the model's place in the list), not on the order of work.
    compat="mergekit" rescales by |tau|_1 / |m tau|_1 of each tensor; the other implementations have this form.
    """
    config = {**vars(how), "compat": compat}
    left = drop(deltas(tensors, base), chances, at, seen, config)
    return onto(base, left, shares(weights, how.scale, normalize))
