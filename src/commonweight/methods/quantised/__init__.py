"""Quantised: trained numbers, or a base, of a few bits."""

from .alphatuning import AlphaTuning
from .bi_adaptformer import BiAdaptFormer
from .bi_lora import BiLoRA

__all__ = [
    "AlphaTuning",
    "BiAdaptFormer",
    "BiLoRA",
]
