"""Passthrough: one model as it is, or scaled; the step of which frankenmerges are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from ..call.declare import method
from ..registry import Range


@method(
    "passthrough",
    paper="mergekit (no paper)",
    equation="theta = scale theta_1",
    base="none",
    models=(1, 1),
    same=("mergekit",),
)
def passthrough(tensors: Sequence[Tensor], base: Tensor | None, *, scale: Annotated[float, Range()] = 1.0) -> Tensor:
    """The tensor itself. Linear."""
    return tensors[0].clone() if scale == 1.0 else tensors[0] * scale
