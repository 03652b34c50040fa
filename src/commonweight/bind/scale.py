"""Element-wise factors on a layer's input or output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class ScaleOutput:
    """y' = l * y: the weight's rows and the bias. Shapes: l (d_out,). Cost: T d_out."""

    def weight(self, w: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        return w * l[:, None]

    def bias(self, b: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        return b * l

    def output(self, x: Tensor, y: Tensor, base: Base, l: Tensor) -> Tensor:  # noqa: E741
        return y * l

    def grouped(self, x: Tensor, y: Tensor, base: Base, l: Tensor) -> Tensor:  # noqa: E741
        return y * l[:, None]


@serial
@dataclass(frozen=True)
class ScaleInput:
    """x' = l * x: the weight's columns. Shapes: l (d_in,). Cost: T d_in."""

    def weight(self, w: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        return w * l

    def input(self, x: Tensor, base: Base, l: Tensor) -> Tensor:  # noqa: E741
        return x * l
