"""Consensus merging: only the parameters that several tasks use are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import Tensor

from ...core import counted
from ..call.declare import method
from ..maths.parts import combine, deltas
from ..registry import Count, Range
from .tall_masks import Threshold, masks


def check(config: Mapping[str, Any], n: int) -> str | None:
    k = config["users"]
    return f"users is {k}, with {counted(n, 'model')}: no parameter would be merged" if k > n else None


@method(
    "consensus",
    paper="Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813",
    equation="theta = theta_0 + scale [sum_t m_t >= k] sum_t w_t tau_t, m_t the TALL masks",
    models=(2, None),
    check=check,
)
def consensus(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    users: Count = 2,
    threshold: Threshold = 0.4,
    scale: Annotated[float, Range()] = 1.0,
) -> Tensor:
    """Drops what no task uses ("catastrophic") and what one task uses ("selfish"). users: the paper's k.

    The masks are those of the unweighted sum. scale: tuned on 0.1 to 1 by the paper.
    """
    used = masks(tensors, base, threshold).sum(0) >= users
    return base + scale * used * combine(deltas(tensors, base), weights)
