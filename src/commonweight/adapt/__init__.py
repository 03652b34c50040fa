"""Training tenants: data in, one small file out. The loop is transformers.Trainer's."""

from .base import native_bf16, open_host
from .classifier import Classifier
from .data import Data
from .files import Files, run
from .recipe import Recipe
from .rows import read
from .train import Result, adapt, adapt_together, evaluate
from .trainer import Progress

__all__ = [
    "Classifier",
    "Data",
    "Files",
    "Progress",
    "Recipe",
    "Result",
    "adapt",
    "adapt_together",
    "evaluate",
    "native_bf16",
    "open_host",
    "read",
    "run",
]
