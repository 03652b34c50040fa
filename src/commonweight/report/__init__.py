"""What a person looks at: a picture and a page. Each is one file that loads nothing from anywhere."""

from .figure import Dot, Scatter, compact
from .page import Column, facts, page, table
from .statistics import interval, mean_interval, spread, student

__all__ = [
    "Column",
    "Dot",
    "Scatter",
    "compact",
    "facts",
    "interval",
    "mean_interval",
    "page",
    "spread",
    "student",
    "table",
]
