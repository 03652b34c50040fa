"""What a person looks at: a picture and a page, each one file that loads nothing from anywhere."""

from .figure import Dot, Scatter, compact
from .page import Column, facts, page, table
from .statistics import interval, spread

__all__ = ["Column", "Dot", "Scatter", "compact", "facts", "interval", "page", "spread", "table"]
