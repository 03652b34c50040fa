from .flat import Scatter, Segment, Signed
from .inventory import Combine, Heads, Stack, Total
from .kronecker import Kronecker
from .linear import Gather, Row, Whole, Window, fold
from .mixture import Chosen, TopK

WHOLE = Whole()

__all__ = [
    "WHOLE",
    "Chosen",
    "Combine",
    "Gather",
    "Heads",
    "Kronecker",
    "Row",
    "Scatter",
    "Segment",
    "Signed",
    "Stack",
    "TopK",
    "Total",
    "Whole",
    "Window",
    "fold",
]
