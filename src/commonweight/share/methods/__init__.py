"""One file per sharing method: options and a layout. Adding one: the file, its name in this list, its test."""

from ..registry import Method, available, get, layout_of, resolve
from .aslora import ASLoRA
from .autopeft import AutoPEFT
from .basis import Basis
from .crash import CRaSh
from .drop import Drop
from .efficientdm import EfficientDM
from .exit import Exits
from .foldgpt import FoldGPT
from .fusegpt import FuseGPT
from .hashed import Hashing
from .igpg import IGPG
from .ilr import ILR
from .kind import KIND
from .masa import MASA
from .matching import Matching
from .mip import MIP
from .mixturegrowth import MixtureGrowth
from .mobillama import MobiLlama
from .mor import MoR
from .nanoflow import NanoFlow
from .parscale import ParScale
from .product_keys import ProductKeys
from .qfa import QFA
from .recursive import Recursive
from .rembert import RemBERT
from .shared_diff import SharedDIFF
from .sret import SReT
from .steps import Steps
from .structured import Structured
from .subformer import Subformer
from .supernet import Supernet
from .sut import SUT
from .tiled import Tiled
from .widenet import WideNet
from .zamba import Zamba

__all__ = [
    "IGPG",
    "ILR",
    "KIND",
    "MASA",
    "MIP",
    "QFA",
    "SUT",
    "ASLoRA",
    "AutoPEFT",
    "Basis",
    "CRaSh",
    "Drop",
    "EfficientDM",
    "Exits",
    "FoldGPT",
    "FuseGPT",
    "Hashing",
    "Matching",
    "Method",
    "MixtureGrowth",
    "MoR",
    "MobiLlama",
    "NanoFlow",
    "ParScale",
    "ProductKeys",
    "Recursive",
    "RemBERT",
    "SReT",
    "SharedDIFF",
    "Steps",
    "Structured",
    "Subformer",
    "Supernet",
    "Tiled",
    "WideNet",
    "Zamba",
    "available",
    "get",
    "layout_of",
    "resolve",
]
