"""One model tuned by many machines, which send each other pools, seeds and scalars."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asks import Gradient, Loss, Sent, Slope, Told, Train, Trained, drive, drive_all
    from .local import Local, Rounds
    from .message import REASONS, Facts, Part, Refused, bound, pack, payload, unpack
    from .methods import available, get
    from .page import report
    from .registry import Method, Reply, Setting, State
    from .rounds import Gathering
    from .run import Run
    from .simulation import Progress, simulate
    from .splits import split

__all__ = [
    "REASONS",
    "Facts",
    "Gathering",
    "Gradient",
    "Local",
    "Loss",
    "Method",
    "Part",
    "Progress",
    "Refused",
    "Reply",
    "Rounds",
    "Run",
    "Sent",
    "Setting",
    "Slope",
    "State",
    "Told",
    "Train",
    "Trained",
    "available",
    "bound",
    "drive",
    "drive_all",
    "get",
    "pack",
    "payload",
    "report",
    "simulate",
    "split",
    "unpack",
]

_HOMES = {
    **dict.fromkeys(("Gradient", "Loss", "Sent", "Slope", "Told", "Train", "Trained", "drive", "drive_all"), "asks"),
    **dict.fromkeys(("Local", "Rounds"), "local"),
    **dict.fromkeys(("REASONS", "Facts", "Part", "Refused", "bound", "pack", "payload", "unpack"), "message"),
    **dict.fromkeys(("Method", "Reply", "Setting", "State"), "registry"),
    **dict.fromkeys(("Progress", "simulate"), "simulation"),
    **dict.fromkeys(("available", "get"), "methods"),
    "Gathering": "rounds",
    "Run": "run",
    "report": "page",
    "split": "splits",
}


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
