"""How a method is declared: `@method(name, ...)` over its function puts it on the list, and makes it one to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from torch import Tensor

from .. import registry
from ..registry.options import flat
from .run import run


def method(name: str, **about: Any) -> Callable[[Callable[..., Tensor]], registry.Method]:
    """Registers a function `(tensors, base, *, weights, **config) -> Tensor`; a name used twice raises."""

    def register(function: Callable[..., Tensor]) -> registry.Method:
        function = flat(function)
        hint = get_type_hints(function).get("compat")
        names = tuple(v for kind in get_args(hint) for v in get_args(kind)) if hint else ()
        made = registry.add(registry.Method(name=name, function=function, run=run, compat=names, **about))
        # help() and an editor's hover show the function's own words
        object.__setattr__(made, "__doc__", function.__doc__)
        return made

    return register
