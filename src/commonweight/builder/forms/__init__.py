"""The classes that a layer of a shared model gets before its own: plain torch, so that a saved folder can carry them.

A form is a class without `__init__` that stands before the layer's own class; its parameters are made by `arrange`.
"""

from .blocks import Encoded, MappedBlock, Stepped, Told
from .mixture import Mixture
from .relaxed import Relaxed

__all__ = ["Encoded", "MappedBlock", "Mixture", "Relaxed", "Stepped", "Told"]
