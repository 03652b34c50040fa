"""The classes that a layer of a shared model gets before its own: plain torch, so that a saved folder can carry them.

A form is a class without `__init__` that stands before the layer's own class; its parameters are made by `arrange`.
"""

from .adapters import Parallel, Serial
from .addressed import Addressed
from .blocks import Encoded, MappedBlock, Projection, Stepped, Told
from .choices import Assigned, Leaving, Selected
from .composed import Factored, Guided
from .halting import Halted, Heard, Spoken
from .mixture import Mixture
from .quantised import Elastic, Requantised
from .relaxed import Relaxed
from .walk import Walk, Walked

__all__ = [
    "Addressed",
    "Assigned",
    "Elastic",
    "Encoded",
    "Factored",
    "Guided",
    "Halted",
    "Heard",
    "Leaving",
    "MappedBlock",
    "Mixture",
    "Parallel",
    "Projection",
    "Relaxed",
    "Requantised",
    "Selected",
    "Serial",
    "Spoken",
    "Stepped",
    "Told",
    "Walk",
    "Walked",
]
