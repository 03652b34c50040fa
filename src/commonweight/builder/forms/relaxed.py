"""A linear layer with a low-rank update of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import nn


class Relaxed:
    """y = W x + b + B A x: W may be read at other depths too; A (r, in) and B (out, r) are this layer's own."""

    A: nn.Parameter
    B: nn.Parameter
    composed = True  # the layer computes with more than its `weight`

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.A), self.B)  # type: ignore[misc]

    def composed_weight(self) -> Tensor:
        """What the layer computes with, in its own layout."""
        held = self._parameters.get("weight")  # type: ignore[attr-defined]  # past whatever stands before it
        w: Tensor = super().weight if held is None else held  # type: ignore[misc]
        update = self.B @ self.A
        return w + (update.T if hasattr(self, "nf") else update)  # Conv1D holds (in, out)

    def update(self) -> Tensor:
        """What is added to the weight, (out, in)."""
        return self.B @ self.A
