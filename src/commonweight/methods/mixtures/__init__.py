"""Mixtures: experts of low rank, or vectors, inside one tenant, of which every token takes what a router says."""

from .dynmole import DynMoLE
from .hydralora import HydraLoRA
from .llava_mole import LLaVAMoLE
from .meo import MEO
from .mola import MoLA
from .molora import MoLORA
from .mov import MoV
from .mpoe import MPOE
from .smora import SMoRA
from .smore import SMoRE
from .styleinject import StyleInject

__all__ = ["MEO", "MPOE", "DynMoLE", "HydraLoRA", "LLaVAMoLE", "MoLA", "MoLORA", "MoV", "SMoRA", "SMoRE", "StyleInject"]
