"""The types everything is said in, and the small tools they need. Imports nothing of the rest."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .amount import parse_bytes, parse_count
from .config import build, build_stored, config, globs, option, own, parse, table
from .counts import counted
from .errors import CommonweightError, Unknown, WrongTask, first_line, unknown
from .names import fits, natural, safe
from .registry import Registry, with_rest
from .serial import dump, load, serial
from .version import library

if TYPE_CHECKING:
    from .init import (
        ONES,
        ZEROS,
        Around,
        BaseWeight,
        Constant,
        Eyes,
        Init,
        Normal,
        Orthonormal,
        Positive,
        Source,
        Uniform,
        Values,
        kaiming,
    )
    from .rng import Rng
    from .types import WEIGHTLESS, Address, Base, Bind, Plan, Pool, Read, Site, Use

__all__ = [
    "ONES",
    "WEIGHTLESS",
    "ZEROS",
    "Address",
    "Around",
    "Base",
    "BaseWeight",
    "Bind",
    "CommonweightError",
    "Constant",
    "Eyes",
    "Init",
    "Normal",
    "Orthonormal",
    "Plan",
    "Pool",
    "Positive",
    "Read",
    "Registry",
    "Rng",
    "Site",
    "Source",
    "Uniform",
    "Unknown",
    "Use",
    "Values",
    "WrongTask",
    "build",
    "build_stored",
    "config",
    "counted",
    "dump",
    "first_line",
    "fits",
    "globs",
    "kaiming",
    "library",
    "load",
    "natural",
    "option",
    "own",
    "parse",
    "parse_bytes",
    "parse_count",
    "safe",
    "serial",
    "table",
    "unknown",
    "with_rest",
]

# These need torch, whose import takes longer than any command of the store.
_HOMES = {
    **dict.fromkeys(
        ("ONES", "ZEROS", "Around", "BaseWeight", "Constant", "Eyes", "Init", "Normal", "Orthonormal"), "init"
    ),
    **dict.fromkeys(("Positive", "Source", "Uniform", "Values", "kaiming"), "init"),
    **dict.fromkeys(("Address", "Base", "Bind", "Plan", "Pool", "Read", "Site", "Use", "WEIGHTLESS"), "types"),
    "Rng": "rng",
}


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
