"""Element-wise factors on a layer's input or output.

They stay in float32 when the model is bfloat16, which has no number between 1 and 1.0078.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class ScaleOutput:
    """y' = l * y: the weight's rows and the bias. Shapes: l (d_out,). Cost: T d_out."""

    anywhere: ClassVar[str] = "output"
    precise = True

    def weight(self, w: Tensor, l: Tensor) -> Tensor:
        return w * l[:, None]

    def bias(self, b: Tensor, l: Tensor) -> Tensor:
        return b * l

    def output(self, x: Tensor, y: Tensor, base: Base, l: Tensor) -> Tensor:
        return (y * l).to(y.dtype)

    def grouped(self, x: Tensor, y: Tensor, base: Base, l: Tensor) -> Tensor:
        return (y * l[:, None]).to(y.dtype)


@serial
@dataclass(frozen=True)
class ScaleInput:
    """x' = l * x: the weight's columns. Shapes: l (d_in,). Cost: T d_in."""

    precise = True

    def weight(self, w: Tensor, l: Tensor) -> Tensor:
        return w * l

    def input(self, x: Tensor, base: Base, l: Tensor) -> Tensor:
        return (x * l).to(x.dtype)
