"""Modules with a small network behind them or beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import nn


class Serial:
    """y = f(x) + up act(down f(x) + down_bias) + up_bias."""

    down: nn.Parameter
    up: nn.Parameter
    down_bias: nn.Parameter
    up_bias: nn.Parameter
    behind_act: str

    def grow(self, act: str) -> None:
        self.behind_act = act

    def forward(self, *args: Any) -> Tensor:
        y = super().forward(*args)  # type: ignore[misc]
        h = getattr(F, self.behind_act)(F.linear(y, self.down, self.down_bias))
        return y + F.linear(h, self.up, self.up_bias)


class Parallel:
    """y = f(x) + scale (up act(down x + down_bias) + up_bias).

    A module that adds a residual itself gets it with the rest."""

    side_down: nn.Parameter
    side_up: nn.Parameter
    side_down_bias: nn.Parameter
    side_up_bias: nn.Parameter
    side_act: str
    side_scale: float

    def grow(self, act: str, scale: float = 1.0) -> None:
        self.side_act, self.side_scale = act, scale

    def forward(self, x: Tensor, *residual: Tensor) -> Tensor:
        read = residual[0] if residual else x
        h = getattr(F, self.side_act)(F.linear(read, self.side_down, self.side_down_bias))
        more = self.side_scale * F.linear(h, self.side_up, self.side_up_bias)
        if residual:
            return super().forward(x, residual[0] + more)  # type: ignore[misc]
        return super().forward(x) + more  # type: ignore[misc]
