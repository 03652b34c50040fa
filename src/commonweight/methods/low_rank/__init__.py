"""Low rank: an update B A beside every weight, and other starts, masks and parts of it."""

from . import lora, lori
from .dora import DoRA
from .lora import LoRA
from .lora_xs import LoRAXS
from .lori import LoRI
from .nlora import NLoRA
from .pissa import PiSSA
from .slora import SLoRA

__all__ = [
    "DoRA",
    "LoRA",
    "LoRAXS",
    "LoRI",
    "NLoRA",
    "PiSSA",
    "SLoRA",
    "lora",
    "lori",
]
