"""Gradients through packed layers that have none.

torchao's layers that round their input (dynamic activation quantisation), kernels without a backward (GGUF, some of
bitsandbytes on a CPU): what they answer hangs on nothing, and everything below would get no gradient, without an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import Base


class Straight(torch.autograd.Function):
    """y as the layer answered it; the input's gradient is that of ``F.linear`` with the dequantised weight, as if the
    rounding of the input were none. Shapes: x (*, d_in), y (*, d_out). Cost: a copy of y; backward dequantises once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, at: Base) -> Tensor:
        ctx.at, ctx.dtype = at, x.dtype
        return y.clone()  # y may be a view, and what is written over one afterwards would take this node's place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        g = grads[0]
        return (g @ ctx.at.weight.to(g.dtype)).to(ctx.dtype), None, None
