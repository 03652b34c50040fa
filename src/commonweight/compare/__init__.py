"""Methods compared at equal bytes, with error bars. Configs by budget, tuning, cached runs, a table and a page."""

from ..workers import workers
from .budget import Fit, fit, parse_budget
from .cache import Cache
from .data import Data, find
from .driver import Outcome, Progress, compare
from .settings import Comparison, parse_methods, parse_options
from .summary import ALL, Point, Value, front, points

__all__ = [
    "ALL",
    "Cache",
    "Comparison",
    "Data",
    "Fit",
    "Outcome",
    "Point",
    "Progress",
    "Value",
    "compare",
    "find",
    "fit",
    "front",
    "parse_budget",
    "parse_methods",
    "parse_options",
    "points",
    "workers",
]
