"""Sequences: what is trained stands in front of a row, as tokens or as keys and values; no weight changes."""

from . import prefix_tuning
from .prefix_tuning import PrefixTuning

__all__ = [
    "PrefixTuning",
    "prefix_tuning",
]
