"""Training tenants: data in, one small file out. The loop is transformers.Trainer's."""

from .base import native_bf16, open_host
from .classifier import Classifier
from .data import Data
from .files import Files, run
from .job import Job, Source
from .recipe import Recipe
from .rows import read
from .tenants_file import read_tenants
from .together import run_late, run_together
from .train import Result, adapt, adapt_together, evaluate
from .trainer import Progress

__all__ = [
    "Classifier",
    "Data",
    "Files",
    "Job",
    "Progress",
    "Recipe",
    "Result",
    "Source",
    "adapt",
    "adapt_together",
    "evaluate",
    "native_bf16",
    "open_host",
    "read",
    "read_tenants",
    "run",
    "run_late",
    "run_together",
]
