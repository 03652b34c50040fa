"""Hidden states: what a block gives out is edited; no weight changes."""

from . import loreft
from .loreft import LoReFT

__all__ = [
    "LoReFT",
    "loreft",
]
