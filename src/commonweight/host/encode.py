"""sentence-transformers sorts its rows by length before it makes batches, so that a reader per row needs to follow.

`encode` (and a cross-encoder's `predict`) of a model that stands on a host then runs once per reader, on that reader's
rows, and puts the results into the caller's order. One route may so name more rows than a batch has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError, counted
from .current import ROUTES, Current
from .route import Route

FUNCTIONS = {"SentenceTransformer": "encode", "SparseEncoder": "encode", "CrossEncoder": "predict"}


def install() -> None:
    """Where the library is loaded; asked each time that a route opens. Cost: a look-up."""
    library = sys.modules.get("sentence_transformers")
    if library is None:
        return
    for kind, name in FUNCTIONS.items():
        found = getattr(library, kind, None)
        if found is not None and not hasattr(getattr(found, name), "follows_routes"):
            setattr(found, name, _following(getattr(found, name)))


def _following(function: Callable) -> Callable:
    @wraps(function)
    def following(self: Any, *args: Any, **kwargs: Any) -> Any:
        current, route = _routed(self)
        if current is None or route is None:
            return function(self, *args, **kwargs)
        if kwargs.get("pool") is not None or isinstance(kwargs.get("device"), list | tuple):
            raise CommonweightError(
                f"{type(self).__name__}.{function.__name__}: other processes do not know the route that is open here; "
                "leave out pool, and name one device"
            )
        name = next((n for n in ("inputs", "sentences") if n in kwargs), None)
        given = args[0] if args else kwargs.get(name or "")
        if route.single is not None or given is None or self.is_singular_input(given):
            return function(self, *args, **kwargs)
        rows = list(given)
        if (route.shape is not None and len(route.shape) > 1) or len(rows) != route.length:
            raise CommonweightError(
                f"{type(self).__name__}.{function.__name__}: the route names {counted(route.length, 'reader')}, "
                "there are "
                f"{counted(len(rows), 'row')}; give one reader per row (None for the plain base)"
            )
        if kwargs.get("precision") in ("int8", "uint8"):
            raise CommonweightError(
                f"precision={kwargs['precision']!r} takes its ranges from all rows at once, and a route of several "
                "readers runs reader by reader; take float32 and quantise what comes back"
            )
        out: list[Any] = [None] * len(rows)
        part: Any = []
        for reader, places in route.groups:
            mine = [rows[p] for p in places]
            with current.within(None if reader is None else Route(single=reader)):
                part = function(self, mine, *args[1:], **kwargs) if args else function(self, **{**kwargs, name: mine})  # type: ignore[dict-item]
            for place, value in zip(places, part):
                out[place] = value
        return _like(part, out)

    following.follows_routes = True  # type: ignore[attr-defined]
    return following


def _routed(model: torch.nn.Module) -> tuple[Current | None, Route | None]:
    """The route that is in force for a model inside this one."""
    for current, state in ROUTES.get().items():
        inside = (m.__dict__.get("forward") for m in model.modules())
        if state.route is not None and any(getattr(entrance, "current", None) is current for entrance in inside):
            return current, state.route.root
    return None, None


def _like(part: Any, rows: list[Any]) -> Any:
    """All rows in the form that one part has: a tensor, an array, or a list."""
    if isinstance(part, Tensor):
        return torch.stack(rows)
    if isinstance(part, list):
        return rows
    import numpy

    return numpy.stack(rows)
