"""What a person looks at: a picture and a page. Each is one file that loads nothing from anywhere."""

from .figure import Dot, Scatter, compact
from .page import Column, facts, page, table
from .picture import Line, picture
from .statistics import interval, mean_interval, spread, student

__all__ = [
    "Column",
    "Dot",
    "Line",
    "Scatter",
    "compact",
    "facts",
    "interval",
    "mean_interval",
    "page",
    "picture",
    "spread",
    "student",
    "table",
]
