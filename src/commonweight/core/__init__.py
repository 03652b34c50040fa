"""The types everything is said in, and the small tools they need. Imports nothing of the rest."""

from .config import build, config, option, parse, table
from .errors import CommonweightError, unknown
from .init import ONES, ZEROS, BaseWeight, Constant, Init, Normal, Orthonormal, Source, Uniform, Values, kaiming
from .rng import Rng
from .serial import dump, load, serial
from .types import Address, Base, Bind, Ctx, Plan, Pool, Read, Site, Use

__all__ = [
    "ONES",
    "ZEROS",
    "Address",
    "Base",
    "BaseWeight",
    "Bind",
    "CommonweightError",
    "Constant",
    "Ctx",
    "Init",
    "Normal",
    "Orthonormal",
    "Plan",
    "Pool",
    "Read",
    "Rng",
    "Site",
    "Source",
    "Uniform",
    "Use",
    "Values",
    "build",
    "config",
    "dump",
    "kaiming",
    "load",
    "option",
    "parse",
    "serial",
    "table",
    "unknown",
]
