"""One file per method: options and a plan, no model. Adding one: the file, its name in this list, its test."""

from . import bottleneck, compacter, lora, loreft, lori, mos, poly, probe, scalearn, share, svf
from .alphatuning import AlphaTuning
from .beside import Beside, beside
from .bitfit import BitFit
from .boft import BOFT
from .bottleneck import Bottleneck
from .compacter import Compacter
from .cpoly import CPoly
from .dora import DoRA
from .full import Full
from .head import head
from .ia3 import IA3
from .intrinsic import Intrinsic
from .lntuning import LNTuning
from .lora import LoRA
from .lora_xs import LoRAXS
from .loreft import LoReFT
from .lori import LoRI
from .lotr import LoTR
from .mos import MoS
from .mtlora import MTLoRA
from .nlora import NLoRA
from .oft import OFT
from .pissa import PiSSA
from .poly import Poly
from .probe import Probe
from .randlora import RandLoRA
from .registry import Method, available, families, get, method, plan, resolve
from .road import RoAd
from .scalearn import ScaLearn
from .share import Share
from .sharelora import ShareLoRA
from .slora import SLoRA
from .svf import SVF
from .tokens import Tokens
from .uni_lora import UniLoRA
from .vb_lora import VBLoRA
from .vera import VeRA

__all__ = [
    "BOFT",
    "IA3",
    "OFT",
    "SVF",
    "AlphaTuning",
    "Beside",
    "BitFit",
    "Bottleneck",
    "CPoly",
    "Compacter",
    "DoRA",
    "Full",
    "Intrinsic",
    "LNTuning",
    "LoRA",
    "LoRAXS",
    "LoRI",
    "LoReFT",
    "LoTR",
    "MTLoRA",
    "Method",
    "MoS",
    "NLoRA",
    "PiSSA",
    "Poly",
    "Probe",
    "RandLoRA",
    "RoAd",
    "SLoRA",
    "ScaLearn",
    "Share",
    "ShareLoRA",
    "Tokens",
    "UniLoRA",
    "VBLoRA",
    "VeRA",
    "available",
    "beside",
    "bottleneck",
    "compacter",
    "families",
    "get",
    "head",
    "lora",
    "loreft",
    "lori",
    "method",
    "mos",
    "plan",
    "poly",
    "probe",
    "resolve",
    "scalearn",
    "share",
    "svf",
]
