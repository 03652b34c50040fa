"""What a reader does with what it read: one small file per family of pure functions."""

from .anchored import Anchored
from .bottleneck import Bottleneck, Weighed
from .coded import Coded
from .entries import Entries, Turned, turned
from .intervene import Edit
from .low_rank import LowRank, active
from .magnitude import Magnitude
from .random_bases import RandomBases
from .rotate import Butterfly, RotateBlocks, RotatePairs
from .routed import Drawn, Skills
from .scale import ScaleInput, ScaleOutput
from .shift import BiasShift, Classify, Shift

__all__ = [
    "Anchored",
    "BiasShift",
    "Bottleneck",
    "Butterfly",
    "Classify",
    "Coded",
    "Drawn",
    "Edit",
    "Entries",
    "LowRank",
    "Magnitude",
    "RandomBases",
    "RotateBlocks",
    "RotatePairs",
    "ScaleInput",
    "ScaleOutput",
    "Shift",
    "Skills",
    "Turned",
    "Weighed",
    "active",
    "turned",
]
