"""A small two-layer network on top of a layer's output: the serial adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial

ACTS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@serial
@dataclass(frozen=True)
class Bottleneck:
    """y' = y + up act(down y + down_bias) + up_bias. No form of a weight: the activation stands between.

    Shapes: down (r, d_out), down_bias (r,), up (d_out, r), up_bias (d_out,). Linear in: up and up_bias, each alone.
    Cost: 2 T r d_out products. GELU is the exact one (erf).
    """

    act: str = "gelu"

    def output(
        self, x: Tensor, y: Tensor, base: Base, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor
    ) -> Tensor:
        return y + F.linear(ACTS[self.act](F.linear(y, down, down_bias)), up, up_bias)

    def grouped(
        self, x: Tensor, y: Tensor, base: Base, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor
    ) -> Tensor:
        """`output` of n readers at once: y (n, T, d_out), down (n, r, d_out), ..."""
        h = ACTS[self.act](torch.baddbmm(down_bias[:, None], y, down.mT))
        return y + torch.baddbmm(up_bias[:, None], h, up.mT)
