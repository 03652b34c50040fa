"""Shared pools: the numbers of many layers, or of many tenants, are read from what is held once."""

from . import mos, share, uni_lora
from .intrinsic import Intrinsic
from .lotr import LoTR
from .mos import MoS
from .randlora import RandLoRA
from .share import Share
from .sharelora import ShareLoRA
from .uni_lora import UniLoRA
from .uora import UORA
from .vb_lora import VBLoRA
from .vera import VeRA

__all__ = [
    "UORA",
    "Intrinsic",
    "LoTR",
    "MoS",
    "RandLoRA",
    "Share",
    "ShareLoRA",
    "UniLoRA",
    "VBLoRA",
    "VeRA",
    "mos",
    "share",
    "uni_lora",
]
