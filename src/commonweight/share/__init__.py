"""Smaller models: layers, matrices and embeddings of one model read common pools."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import methods
    from .make import share
    from .methods import available
    from .save import save

__all__ = ["available", "methods", "save", "share"]

_HOMES = {"available": "methods", "save": "save", "share": "make"}


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
