"""The list of merge methods: one pure function each, and what it may be told.

What a method's file needs is here: the ways to annotate its options too.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...core import unknown
from ..sources.at import At, depths
from .options import Beside, Coefficients, Count, Density, Each, PerModel, Positive, Range, Share, limit
from .spec import CONTEXT, Method, Survey

__all__ = [
    "CONTEXT", "At", "Beside", "Coefficients", "Count", "Density", "Each", "Method", "PerModel", "Positive", "Range",
    "Share", "Survey", "add", "available", "depths", "get", "limit",
]  # fmt: skip

_METHODS: dict[str, Method] = {}


def add(made: Method) -> Method:
    """Puts a method on the list. Raises: TypeError for a name that is there."""
    if made.name in _METHODS:
        raise TypeError(f"the merge method {made.name!r} is registered twice")
    return _METHODS.setdefault(made.name, made)


def available() -> Mapping[str, Method]:
    """Every merge method by name."""
    return dict(sorted(_METHODS.items()))


def get(name: str) -> Method:
    if name not in _METHODS:
        raise unknown("merge method", str(name), _METHODS)
    return _METHODS[name]
