"""Rotation: inputs or outputs are turned, so that lengths and angles stay."""

from .boft import BOFT
from .hra import HRA
from .oft import OFT
from .road import RoAd

__all__ = [
    "BOFT",
    "HRA",
    "OFT",
    "RoAd",
]
