"""RAM+, tensor by tensor: what only one model changed is made larger where it shares much with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ..call.declare import method
from ..maths.parts import column, deltas, sums
from ..registry import At, Range
from .ram import Epsilon, split


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, epsilon: float, **config: Any) -> dict[str, Tensor]:
    _, changed, count = split(deltas(tensors, base), epsilon)
    return {"counts": torch.stack([(changed & mask).flatten(1).sum(1) for mask in (count > 1, count == 1)])}


@method(
    "ramplus_tl",
    paper="Reinforced Agent Merging, arXiv 2601.13572; the form per tensor: mergekit",
    equation="unique changes times 1 + r min(alpha, shared_t / unique_t); shared ones averaged",
    survey=sums(_look, lambda config: "tensor"),
    same=("mergekit",),
)
def ramplus_tl(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    seen: Any,
    r: Annotated[float, Range(ge=0)] = 0.1,
    alpha: Annotated[float, Range(ge=0)] = 0.2,
    epsilon: Epsilon = 1e-5,
) -> Tensor:
    """shared_t, unique_t: how many entries of the tensor model t changed with others, and alone. Takes no weights."""
    tau, _, count = split(deltas(tensors, base), epsilon)
    shared, unique = seen["counts"].float()
    factor = 1 + r * (shared / unique.clamp(min=epsilon)).clamp(0, alpha)
    alone = (tau * (count == 1) * column(factor.tolist(), tau)).sum(0)
    return base + alone + (tau * (count > 1)).sum(0) / count.clamp(min=1)
