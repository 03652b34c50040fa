"""A server before an engine: the interfaces of OpenAI and vLLM, keys and limits, metrics and logs.

`make(engine, settings)` is the application; `commonweight serve` runs it. Texts become requests of the engine in
`read`, pieces of its answers become their JSON in `write`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import make
    from .settings import Settings

__all__ = ["Settings", "make"]

_HOMES = {"make": "app", "Settings": "settings"}


def __getattr__(name: str) -> Any:
    """Imports on first use: keys are made without torch and without a server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
