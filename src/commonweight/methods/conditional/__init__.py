"""Conditional computation: tokens that skip a block, or a part of one, and adapters that all of them have."""

from .coda import CoDA
from .dyt import DyT

__all__ = ["CoDA", "DyT"]
