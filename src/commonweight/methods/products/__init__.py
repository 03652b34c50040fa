"""Products: Kronecker and entrywise products of small matrices, and of such with the weight."""

from .diffusekrona import DiffuseKronA
from .hira import HiRA
from .kadaptation import KAdaptation
from .loha import LoHa
from .lokr import LoKr
from .pfedpara import PFedPara

__all__ = ["DiffuseKronA", "HiRA", "KAdaptation", "LoHa", "LoKr", "PFedPara"]
