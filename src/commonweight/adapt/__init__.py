"""Training tenants: data in, one small file out. The loop is transformers.Trainer's."""

from .base import native_bf16, open_host
from .classifier import Classifier
from .files import Files, run
from .recipe import Recipe
from .rows import read
from .train import Result, adapt, evaluate
from .trainer import Progress

__all__ = [
    "Classifier",
    "Files",
    "Progress",
    "Recipe",
    "Result",
    "adapt",
    "evaluate",
    "native_bf16",
    "open_host",
    "read",
    "run",
]
