"""What a reader does with what it read: one small file per family of pure functions."""

from .low_rank import LowRank
from .scale import ScaleInput, ScaleOutput
from .shift import BiasShift, Classify, Shift

__all__ = ["BiasShift", "Classify", "LowRank", "ScaleInput", "ScaleOutput", "Shift"]
