"""RAM: what one model changed is taken whole, what several changed is averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from ..call.declare import method
from ..maths.parts import deltas
from ..registry import Range

Epsilon = Annotated[float, Range(ge=0)]


def split(tau: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(tau with small entries zero, who changed it (T, *shape), how many did (*shape))."""
    changed = tau.abs() > epsilon
    return tau * changed, changed, changed.sum(0)


@method(
    "ram",
    paper="Reinforced Agent Merging, arXiv 2601.13572",
    equation="tau = sum_t [|tau_t| > eps] tau_t / max(1, number of models that changed it)",
    same=("mergekit",),
)
def ram(tensors: Sequence[Tensor], base: Tensor, *, epsilon: Epsilon = 1e-5) -> Tensor:
    """A parameter is changed where it moved by more than epsilon. Takes no weights."""
    tau, _, count = split(deltas(tensors, base), epsilon)
    return base + tau.sum(0) / count.clamp(min=1)
