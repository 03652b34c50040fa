"""Low rank: an update B A beside every weight, and other starts, masks and parts of it."""

from . import lora, lori
from .adalora import AdaLoRA
from .alora import ALoRA
from .apt import APT
from .corda import CorDA
from .delora import DeLoRA
from .dora import DoRA
from .dsee import DSEE
from .eva import EVA
from .gralora import GraLoRA
from .increlora import IncreLoRA
from .ist import IST
from .lamda import LaMDA
from .light_peft import LightPEFT
from .lora import LoRA
from .lora_ga import LoRAGA
from .lora_mini import LoRAMini
from .lora_sb import LoRASB
from .lora_xs import LoRAXS
from .loretta import LoRETTA
from .lori import LoRI
from .miss import MiSS
from .nlora import NLoRA
from .olora import OLoRA
from .pissa import PiSSA
from .relora import ReLoRA
from .reslora import ResLoRA
from .rolora import RoLoRA
from .salora import SaLoRA
from .slora import SLoRA
from .sora import SoRA
from .tinylora import TinyLoRA
from .triadaptlora import TriAdaptLoRA

__all__ = [
    "APT",
    "DSEE",
    "EVA",
    "IST",
    "ALoRA",
    "AdaLoRA",
    "CorDA",
    "DeLoRA",
    "DoRA",
    "GraLoRA",
    "IncreLoRA",
    "LaMDA",
    "LightPEFT",
    "LoRA",
    "LoRAGA",
    "LoRAMini",
    "LoRASB",
    "LoRAXS",
    "LoRETTA",
    "LoRI",
    "MiSS",
    "NLoRA",
    "OLoRA",
    "PiSSA",
    "ReLoRA",
    "ResLoRA",
    "RoLoRA",
    "SLoRA",
    "SaLoRA",
    "SoRA",
    "TinyLoRA",
    "TriAdaptLoRA",
    "lora",
    "lori",
]
