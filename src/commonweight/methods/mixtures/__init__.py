"""Mixtures: experts of low rank, or vectors, inside one tenant, of which every token takes what a router says."""

from .dynmole import DynMoLE
from .hydralora import HydraLoRA
from .llava_mole import LLaVAMoLE
from .mola import MoLA
from .molora import MoLORA
from .mov import MoV
from .smora import SMoRA

__all__ = ["DynMoLE", "HydraLoRA", "LLaVAMoLE", "MoLA", "MoLORA", "MoV", "SMoRA"]
