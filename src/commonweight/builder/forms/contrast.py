"""The projections of an attention whose heads stand there twice: the second ones are taken off the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import nn


class Doubled:
    """y = (W x + B1 A1 x, W x + B2 A2 x), side by side: heads of both."""

    A1: nn.Parameter
    B1: nn.Parameter
    A2: nn.Parameter
    B2: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)  # type: ignore[misc]
        both = ((self.A1, self.B1), (self.A2, self.B2))
        return torch.cat([y + F.linear(F.linear(x, a), b) for a, b in both], -1)


class Twice:
    """y = (W x, W x)."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)  # type: ignore[misc]
        return torch.cat([y, y], -1)


class Contrast:
    """y = W (x1 - lam x2) + b of an input (x1, x2)."""

    lam: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return super().forward(first - self.lam * second)  # type: ignore[misc]
