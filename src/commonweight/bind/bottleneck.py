"""A small two-layer network on top of a layer's output: the serial adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@serial
@dataclass(frozen=True)
class Bottleneck:
    """y' = y + up act(down y + down_bias) + up_bias. No form of a weight: the activation stands between.

    Shapes: down (r, d_out), down_bias (r,), up (d_out, r), up_bias (d_out,). Linear in: up and up_bias, each alone.
    Cost: 2 T r d_out products. gelu is the exact one (erf), gelu_new that by tanh.
    """

    act: str = "gelu"
    anywhere: ClassVar[str] = "output"

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


@serial
@dataclass(frozen=True)
class Weighed:
    """A Bottleneck of S adapters side by side, each weighed; in training some of the weights are dropped.

    Shapes: down (S r, d_out), down_bias (S r,), up (d_out, S r) and up_bias (S, d_out), both weighed. alike: a source
    has one weight, else one per feature. Linear in: up and up_bias, given the draw. Cost: as Bottleneck.
    """

    act: str = "gelu"
    dropout: float = 0.0
    alike: bool = False
    anywhere: ClassVar[str] = "output"

    def kept(self, up: Tensor, up_bias: Tensor, draw: bool) -> tuple[Tensor, Tensor]:
        if draw and self.dropout:
            keep = F.dropout(torch.ones_like(up_bias[..., :1] if self.alike else up_bias), self.dropout)
            up = (up.unflatten(-1, (keep.shape[-2], -1)) * keep.mT[..., None]).flatten(-2)
            up_bias = up_bias * keep
        return up, up_bias.sum(-2)

    def output(
        self, x: Tensor, y: Tensor, base: Base, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor
    ) -> Tensor:
        return Bottleneck(self.act).output(x, y, base, down, down_bias, *self.kept(up, up_bias, base.training))

    def grouped(
        self, x: Tensor, y: Tensor, base: Base, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor
    ) -> Tensor:
        return Bottleneck(self.act).grouped(x, y, base, down, down_bias, *self.kept(up, up_bias, base.training))


@serial
@dataclass(frozen=True)
class Parallel:
    """y' = y + scale (up act(down x + down_bias) + up_bias), x what the module is given: an adapter beside it.

    Shapes: down (r, d_in), down_bias (r,), up (d_out, r), up_bias (d_out,). Linear in: up and up_bias, each alone.
    Cost: T r (d_in + d_out) products. Source: arXiv 2110.04366, table 1.
    """

    act: str = "relu"
    scale: float = 1.0

    def output(
        self, x: Tensor, y: Tensor, base: Base, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor
    ) -> Tensor:
        h = ACTS[self.act](F.linear(x, down, down_bias))
        return y + F.linear(self.scale * h, up, self.scale * up_bias)  # on h, which is narrower than y

    def grouped(
        self, x: Tensor, y: Tensor, base: Base, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor
    ) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), down (n, r, d_in), ..."""
        h = ACTS[self.act](torch.baddbmm(down_bias[:, None], x, down.mT))
        return y + torch.baddbmm(self.scale * up_bias[:, None], self.scale * h, up.mT)
