"""Flower (flwr 1.42) carries the messages of a run: between processes and machines, or in Flower's own simulation.

`app` writes a Flower app, without Flower. `serve` is what its server does, `hello` and `train` what its clients do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import hello, train
    from .server import serve
    from .strategy import Exchange
    from .writing import app

__all__ = ["Exchange", "app", "hello", "serve", "train"]

_HOMES = {"Exchange": "strategy", "app": "writing", "hello": "client", "serve": "server", "train": "client"}


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
