"""How a reader reads from a pool: whole, a window, rows, by an index or a hash; each linear in the pool."""

from .blended import Blended
from .blocks import BlockDiagonal, Dealt
from .combined import Mix
from .decoded import Decoded
from .emitted import Emitted, Enlarged
from .flat import Lines, Scatter, Segment, Signed
from .hadamard import Hadamard
from .hadamard_rotation import Unrotated, spread
from .hashed import Hashed
from .inventory import Combine, Heads, Scaled, Stack, logistic, mix, routing
from .kronecker import Kronecker, RowKronecker, RowPairs
from .linear import Gather, Multiplied, Outside, Row, Whole, Window, fold
from .mixture import Chosen, TopK
from .networked import Magnitudes, Routed, perceptron
from .of_task import OfTask, at_task, tasks_of
from .repeated import Repeated
from .tiles import Tiles, grown, tiled
from .train import TensorTrain, modes

WHOLE = Whole()

__all__ = [
    "WHOLE",
    "Blended",
    "BlockDiagonal",
    "Chosen",
    "Combine",
    "Dealt",
    "Decoded",
    "Emitted",
    "Enlarged",
    "Gather",
    "Hadamard",
    "Hashed",
    "Heads",
    "Kronecker",
    "Lines",
    "Magnitudes",
    "Mix",
    "Multiplied",
    "OfTask",
    "Outside",
    "Repeated",
    "Routed",
    "Row",
    "RowKronecker",
    "RowPairs",
    "Scaled",
    "Scatter",
    "Segment",
    "Signed",
    "Stack",
    "TensorTrain",
    "Tiles",
    "TopK",
    "Unrotated",
    "Whole",
    "Window",
    "at_task",
    "fold",
    "grown",
    "logistic",
    "mix",
    "modes",
    "perceptron",
    "routing",
    "spread",
    "tasks_of",
    "tiled",
]
