"""Differential attention, said in its projections: heads that stand there twice, the second taken off the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core import serial


@serial
@dataclass(frozen=True)
class Doubled:
    """y = (W x + B1 A1 x, W x + B2 A2 x), side by side. Shapes: A1, A2 (r, d_in), B1, B2 (d_out, r)."""


@serial
@dataclass(frozen=True)
class Twice:
    """y = (W x, W x). Of values: the cache of a layer is twice as large, for its keys are `Doubled`."""

    more_cache: ClassVar[float] = 1.0


@serial
@dataclass(frozen=True)
class Contrast:
    """y = W (x1 - lambda x2) + b of an input (x1, x2). Shapes: lambda (1,)."""
