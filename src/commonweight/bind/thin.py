"""Tables of tokens that are narrower than the model."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import serial


@serial
@dataclass(frozen=True)
class ThinTable:
    """Of an embedding: y = table[id] M. Shapes: table (V, r), map (r, d). Cost a token: r d products."""


@serial
@dataclass(frozen=True)
class ThinHead:
    """Of an output layer: y = (x D^T) table^T + b. Shapes: table (V, r), down (r, d). Cost a token: r (d + V)."""
