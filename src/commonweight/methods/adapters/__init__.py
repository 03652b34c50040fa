"""Adapters: small networks with an activation, on a layer's output."""

from . import bottleneck, compacter, snnk
from .bottleneck import Bottleneck
from .compacter import Compacter
from .hydra import Hydra
from .loretta_adp import LoRETTAadp
from .parallel import Parallel
from .psrp import PSRP
from .snnk import SNNK
from .sparse_adapter import SparseAdapter
from .vl_pet import VLPET

__all__ = [
    "PSRP",
    "SNNK",
    "VLPET",
    "Bottleneck",
    "Compacter",
    "Hydra",
    "LoRETTAadp",
    "Parallel",
    "SparseAdapter",
    "bottleneck",
    "compacter",
    "snnk",
]
