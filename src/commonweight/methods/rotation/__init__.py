"""Rotation: inputs or outputs are turned, so that lengths and angles stay."""

from .boft import BOFT
from .goft import GOFT
from .hra import HRA
from .oft import OFT
from .road import RoAd

__all__ = [
    "BOFT",
    "GOFT",
    "HRA",
    "OFT",
    "RoAd",
]
