"""An update of two factors that were worked out in float32, added to a layer's output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base
from .low_rank import active


def added(x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor) -> Tensor:
    """y + B A x. Shapes: A (r, d_in), B (d_out, r). The factors are rounded to the activations' dtype here."""
    A, B = (f.to(active(x, y)) for f in (A, B))
    return y + F.linear(base.call(x, A, None), B)


def added_grouped(x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor) -> Tensor:
    """The same for n readers in one product: A (n, r, d_in), B (n, d_out, r)."""
    A, B = (f.to(active(x, y)) for f in (A, B))
    return torch.baddbmm(y, base.many(x, A), B.mT)
