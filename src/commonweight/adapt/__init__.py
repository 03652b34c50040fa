"""Training tenants: data in, one small file out. The loop is transformers.Trainer's."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import native_bf16, open_host
    from .classifier import Classifier
    from .complete import Complete
    from .data import Data
    from .files import Files, run
    from .job import Job, Source
    from .masks import one_bit
    from .moving import discriminator, transfer
    from .recipe import Recipe
    from .rows import read
    from .tenants_file import read_tenants
    from .together import run_late, run_together
    from .train import Result, adapt, adapt_together, evaluate
    from .trainer import Progress

__all__ = [
    "Classifier",
    "Complete",
    "Data",
    "Files",
    "Job",
    "Progress",
    "Recipe",
    "Result",
    "Source",
    "adapt",
    "adapt_together",
    "discriminator",
    "evaluate",
    "native_bf16",
    "one_bit",
    "open_host",
    "read",
    "read_tenants",
    "run",
    "run_late",
    "run_together",
    "transfer",
]

# Trainer and torch take seconds to load; what a command line says is looked at before.
_HOMES = {
    "Classifier": "classifier",
    "Complete": "complete",
    "Data": "data",
    "Files": "files",
    "Job": "job",
    "Progress": "trainer",
    "Recipe": "recipe",
    "Result": "train",
    "Source": "job",
    "adapt": "train",
    "adapt_together": "train",
    "discriminator": "moving",
    "evaluate": "train",
    "native_bf16": "base",
    "one_bit": "masks",
    "open_host": "base",
    "read": "rows",
    "read_tenants": "tenants_file",
    "run": "files",
    "run_late": "together",
    "run_together": "together",
    "transfer": "moving",
}


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
