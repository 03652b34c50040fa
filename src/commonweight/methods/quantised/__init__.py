"""Quantised: trained numbers, or a base, of a few bits."""

from .alphatuning import AlphaTuning

__all__ = [
    "AlphaTuning",
]
