"""Adapters: small networks with an activation, on a layer's output."""

from . import bottleneck, compacter
from .bottleneck import Bottleneck
from .compacter import Compacter

__all__ = [
    "Bottleneck",
    "Compacter",
    "bottleneck",
    "compacter",
]
