"""What a block adds to its input, f(x) = block(x) - x, changed: scaled, mapped, or with something added before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Step:
    """y = x + g (block(x) - x). Shapes: g (1,), or (d,) for each channel. Linear in: g. At g = 1 the block itself, at 0
    as if it were not there.

    Source: one Euler step of length g of h' = f(h), as in arXiv 2310.12818; a gate of FoldGPT, arXiv 2407.00928.
    """

    def output(self, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        return torch.lerp(x, y, g.to(x.dtype))


@serial
@dataclass(frozen=True)
class Mapped:
    """y = x + M (block(x) - x). Shapes: M (d, d). Linear in: M. Cost: T d^2 products.

    Source: the map behind each use of a shared block in Zamba2, arXiv 2411.15242.
    """

    def output(self, x: Tensor, y: Tensor, M: Tensor) -> Tensor:
        return x + torch.nn.functional.linear(y - x, M)


@serial
@dataclass(frozen=True)
class Before:
    """y = block(x + e). Shapes: e (d,). A vector for each use of a block, which tells it at which depth it is."""

    def input(self, x: Tensor, e: Tensor) -> Tensor:
        return x + e


@serial
@dataclass(frozen=True)
class Times:
    """y = v * block(x). Shapes: v (d,). Source: `recursion_encoding` in the authors' code of arXiv 2410.20672."""

    def output(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return y * v


@serial
@dataclass(frozen=True)
class Projected:
    """y = b1 z + b2 W2 gelu(W1 norm(z)), z = block(x). Shapes: b (2,), norm (d,), W1 (m, d), W2 (d, m).

    norm: layer normalisation with a weight alone. Source: the non-linear projection layer of SReT, arXiv 2111.09297,
    eq. (4) and the official code.
    """
