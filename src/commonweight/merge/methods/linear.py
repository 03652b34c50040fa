"""Linear: the weighted average of the models (a model soup)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine
from ..registry.steps import Merge


def shares(weights: Sequence[float], normalize: bool) -> tuple[float, ...]:
    total = sum(weights) if normalize else 1.0
    return tuple(w / total for w in weights)


@method(
    "linear",
    paper="Model soups: averaging weights of multiple fine-tuned models, arXiv 2203.05482",
    equation="theta = sum_t w_t theta_t / sum_t w_t",
    base="none",
    normalises=lambda config: config["normalize"],
    same=("mergekit",),
    steps=lambda config, at, seen: Merge("average", shares(config["weights"], config["normalize"])),
)
def linear(
    tensors: Sequence[Tensor], base: Tensor | None, *, weights: Sequence[float], normalize: bool = True
) -> Tensor:
    """Weighted average; with normalize=False the weighted sum. Linear in every model."""
    return combine(tensors, shares(weights, normalize))
