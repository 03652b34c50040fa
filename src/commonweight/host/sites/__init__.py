"""Finding the sites of a model: which modules can be read from, what they do, what they are called.

One file for each kind of site; `discover.KINDS` lists them.
"""

from .aside import Aside
from .block import Block, blocks
from .choose import (
    UNPACK,
    USUAL,
    Pattern,
    fitting,
    joined,
    misfit,
    packed_fused,
    parted,
    select,
    strangers,
    unknown_kind,
    without,
)  # fmt: skip
from .conv import before_conv, depthwise
from .discover import discover, why_no_prompt
from .families import FAMILIES, families, towers
from .further import STATES, Further, entries, masked, positional
from .physical import Physical, Rows, numbers, parameters, plain_class
from .positions import Positions
from .prefix import Ahead, Front
from .queried import Queried
from .roles import role
from .state import State
from .tied import input_table, once, output_head, said, scores, ties
from .trunk import Trunk

__all__ = [
    "FAMILIES",
    "STATES",
    "UNPACK",
    "USUAL",
    "Ahead",
    "Aside",
    "Block",
    "Front",
    "Further",
    "Pattern",
    "Physical",
    "Positions",
    "Queried",
    "Rows",
    "State",
    "Trunk",
    "before_conv",
    "blocks",
    "depthwise",
    "discover",
    "entries",
    "families",
    "fitting",
    "input_table",
    "joined",
    "masked",
    "misfit",
    "numbers",
    "once",
    "output_head",
    "packed_fused",
    "parameters",
    "parted",
    "plain_class",
    "positional",
    "role",
    "said",
    "scores",
    "select",
    "strangers",
    "ties",
    "towers",
    "unknown_kind",
    "why_no_prompt",
    "without",
]
