"""A file for each method: a frozen config and pure functions; none knows the engine that carries it.

Adding one: the file, its name here, its test.
"""

from ..registry import available, get, resolve
from . import fed_sb, fedavg, ffa_lora
from .fed_sb import FedSB
from .fedavg import FedAvg
from .ffa_lora import FFALoRA

__all__ = ["FFALoRA", "FedAvg", "FedSB", "available", "fed_sb", "fedavg", "ffa_lora", "get", "resolve"]
