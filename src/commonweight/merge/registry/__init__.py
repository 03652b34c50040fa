"""The list of merge methods: name -> one pure function over one tensor, and what it may be told.

What a method's file needs is here: the ways to annotate its options too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from torch import Tensor

from ...core import unknown
from .options import Beside, Count, Density, Each, PerModel, Positive, Range, Share, flat, limit
from .spec import CONTEXT, At, Method, Survey, depths

__all__ = [
    "CONTEXT", "At", "Beside", "Count", "Density", "Each", "Method", "PerModel", "Positive", "Range", "Share", "Survey",
    "available", "depths", "get", "limit", "method",
]  # fmt: skip

_METHODS: dict[str, Method] = {}


def method(name: str, **about: Any) -> Callable[[Callable[..., Tensor]], Method]:
    """Registers a function `(tensors, base, *, weights, **config) -> Tensor`; a name used twice raises."""

    def register(function: Callable[..., Tensor]) -> Method:
        if name in _METHODS:
            raise TypeError(f"the merge method {name!r} is registered twice")
        function = flat(function)
        hint = get_type_hints(function).get("compat")
        names = tuple(v for kind in get_args(hint) for v in get_args(kind)) if hint else ()
        made = _METHODS[name] = Method(name=name, function=function, compat=names, **about)
        # help() and an editor's hover show the function's own words
        object.__setattr__(made, "__doc__", function.__doc__)
        return made

    return register


def available() -> Mapping[str, Method]:
    """Every merge method by name."""
    return dict(sorted(_METHODS.items()))


def get(name: str) -> Method:
    if name not in _METHODS:
        raise unknown("merge method", str(name), _METHODS)
    return _METHODS[name]
