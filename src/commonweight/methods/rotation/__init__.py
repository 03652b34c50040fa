"""Rotation: inputs or outputs are turned, so that lengths and angles stay."""

from .boft import BOFT
from .oft import OFT
from .road import RoAd

__all__ = [
    "BOFT",
    "OFT",
    "RoAd",
]
