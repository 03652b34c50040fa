"""A product of factors that a dense weight guides while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Guided:
    """w' = B A, and while it trains c W + (1 - c) B A, where c falls from 1 to 0 as half of a cosine over the first
    half of the steps. Shapes: A (r, d_in), B (d_out, r), W as the weight.

    Source: self-guided training, arXiv 2407.09835, section 3.2.
    """

    def weight(self, w: Tensor, A: Tensor, B: Tensor, W: Tensor) -> Tensor:
        return B @ A
