"""Conditional computation: tokens that skip a block, or a part of one, blocks that all skip, and adapters in place."""

from .coda import CoDA
from .das import DAS
from .dyt import DyT

__all__ = ["DAS", "CoDA", "DyT"]
