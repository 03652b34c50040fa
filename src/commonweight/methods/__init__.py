"""One file per method. Adding one: the file, its name in this list, its test, its documentation row."""

from . import lora, mos, probe
from .head import head
from .lora import LoRA
from .mos import MoS
from .probe import Probe
from .registry import Method, available, families, get, method, plan, resolve

__all__ = [
    "LoRA",
    "Method",
    "MoS",
    "Probe",
    "available",
    "families",
    "get",
    "head",
    "lora",
    "method",
    "mos",
    "plan",
    "probe",
    "resolve",
]
