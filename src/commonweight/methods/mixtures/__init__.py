"""Mixtures: low-rank experts inside one tenant, of which every token takes what a router says."""

from .dynmole import DynMoLE
from .hydralora import HydraLoRA
from .mola import MoLA
from .molora import MoLORA
from .smora import SMoRA

__all__ = ["DynMoLE", "HydraLoRA", "MoLA", "MoLORA", "SMoRA"]
