"""Tasks: parts that many tasks have in common, and mixtures of trained ones."""

from . import poly, scalearn
from .cpoly import CPoly
from .mtlora import MTLoRA
from .poly import Poly
from .polyhistor import Polyhistor
from .recurrent import Recurrent
from .scalearn import ScaLearn
from .tensorpoly import TensorPoly

__all__ = [
    "CPoly",
    "MTLoRA",
    "Poly",
    "Polyhistor",
    "Recurrent",
    "ScaLearn",
    "TensorPoly",
    "poly",
    "scalearn",
]
