"""Methods over tenants: what is trained, if anything, is how several frozen tenants are weighed."""

from .arrow import Arrow
from .autolora import AutoLoRA
from .lorahub import LoRAHub
from .phatgoose import PHATGOOSE
from .psec import PSEC
from .xlora import XLoRA

__all__ = ["PHATGOOSE", "PSEC", "Arrow", "AutoLoRA", "LoRAHub", "XLoRA"]
