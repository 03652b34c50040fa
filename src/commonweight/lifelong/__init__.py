"""Many tasks learned one after another: what is carried over, and what is forgotten."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asks import Carried, Learned, Stage, Train, Trained
    from .files import run
    from .methods import available, get
    from .page import report
    from .registry import Method
    from .stages import Stream, learn
    from .stream_file import StreamFile, read_stream

__all__ = [
    "Carried",
    "Learned",
    "Method",
    "Stage",
    "Stream",
    "StreamFile",
    "Train",
    "Trained",
    "available",
    "get",
    "learn",
    "read_stream",
    "report",
    "run",
]

_HOMES = {
    **dict.fromkeys(("Carried", "Learned", "Stage", "Train", "Trained"), "asks"),
    **dict.fromkeys(("available", "get"), "methods"),
    **dict.fromkeys(("Stream", "learn"), "stages"),
    **dict.fromkeys(("StreamFile", "read_stream"), "stream_file"),
    "Method": "registry",
    "report": "page",
    "run": "files",
}


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
