"""The classes that a layer of a shared model gets before its own: plain torch, so that a saved folder can carry them.

A form is a class without `__init__` that stands before the layer's own class; its parameters are made by `arrange`.
"""

from .adapters import Parallel, Serial
from .addressed import Addressed
from .blocks import Encoded, MappedBlock, Projection, Stepped, Told
from .choices import Assigned, Leaving, Selected
from .composed import Factored, Guided
from .contrast import Contrast, Doubled, Twice
from .halting import Halted, Heard, Spoken
from .keys import Keyed
from .memory import Recalled
from .mixture import Mixture
from .quantised import Elastic, Requantised
from .relaxed import Relaxed
from .streams import Gathered, Prefixed, Streamed
from .thin import Thin, ThinHead
from .walk import Walk, Walked

__all__ = [
    "Addressed",
    "Assigned",
    "Contrast",
    "Doubled",
    "Elastic",
    "Encoded",
    "Factored",
    "Gathered",
    "Guided",
    "Halted",
    "Heard",
    "Keyed",
    "Leaving",
    "MappedBlock",
    "Mixture",
    "Parallel",
    "Prefixed",
    "Projection",
    "Recalled",
    "Relaxed",
    "Requantised",
    "Selected",
    "Serial",
    "Spoken",
    "Stepped",
    "Streamed",
    "Thin",
    "ThinHead",
    "Told",
    "Twice",
    "Walk",
    "Walked",
]
