"""torch's checkpoints keep the route of their forward: what they recompute in backward is computed under it.

Backward may run outside the route, under another one, or in a thread of torch's own. A model calls
``torch.utils.checkpoint.checkpoint`` by whatever name it has imported it; all of its calls end in one of two places of
that module, which hand on the function that is recomputed. Without a host in the process they are torch's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any

import torch
from torch.utils import checkpoint

from .current import ROUTES, Current, Pass
from .route import Route

_FUNCTION = "_checkpoint_without_reentrant_generator"


def install() -> None:
    """Once a process, by the first host."""
    if not hasattr(checkpoint.CheckpointFunction.forward, "keeps_routes"):
        checkpoint.CheckpointFunction.forward = staticmethod(_second(checkpoint.CheckpointFunction.forward))
        setattr(checkpoint, _FUNCTION, _first(getattr(checkpoint, _FUNCTION)))


def _first(start: Callable) -> Callable:
    @wraps(start)
    def keeping(function: Callable, *args: Any, **kwargs: Any) -> Any:
        return start(kept(function), *args, **kwargs)

    keeping.keeps_routes = True  # type: ignore[attr-defined]
    return keeping


def _second(forward: Callable) -> Callable:
    @wraps(forward)
    def keeping(ctx: Any, function: Callable, *args: Any) -> Any:
        return forward(ctx, kept(function), *args)

    keeping.keeps_routes = True  # type: ignore[attr-defined]
    return keeping


def kept(function: Callable) -> Callable:
    """The function, in the passes and under the routes that are in force now; under none where none was."""
    routes = dict(ROUTES.get())
    return partial(_run, routes, {c: c.thread.run for c in routes}, function)


def _run(routes: dict, runs: dict, function: Callable, *args: Any, **kwargs: Any) -> Any:
    with ExitStack() as stack:
        for current in {**ROUTES.get(), **routes}:
            state = routes.get(current)
            run = runs.get(current, current.thread.run)
            stack.enter_context(current.again(None if state is None else state.route, run))
        return function(*args, **kwargs)


def reversible(encoder: Any, current: Current) -> Any:
    """A hook for layers that a model runs backwards itself (Reformer), in a function of its own that gives gradients
    where its input has some, which nothing before it has under a frozen base. Returns the handle."""
    function: Any = sys.modules[type(encoder).__module__]._ReversibleFunction
    if not hasattr(function.forward, "keeps_routes"):
        function.forward, function.backward = map(staticmethod, _both(function.forward, function.backward))
    return encoder.register_forward_pre_hook(partial(_wants, current), with_kwargs=True)


def _wants(current: Current, module: Any, args: tuple, kwargs: dict) -> None:
    x = kwargs.get("hidden_states", args[0] if args else None)
    if current.route is not None and torch.is_grad_enabled() and isinstance(x, torch.Tensor) and not x.requires_grad:
        x.requires_grad_()


def _both(forward: Callable, backward: Callable) -> tuple[Callable, Callable]:
    @wraps(forward)
    def first(ctx: Any, *args: Any) -> Any:
        ctx.routes = kept(backward)
        return forward(ctx, *args)

    @wraps(backward)
    def second(ctx: Any, *args: Any) -> Any:
        return ctx.routes(ctx, *args)

    first.keeps_routes = True  # type: ignore[attr-defined]
    return first, second


class Replay:
    """A checkpoint function that keeps its route: the recomputation happens in backward, maybe outside `route`,
    maybe in another thread."""

    def __init__(self, checkpoint: Callable, current: Current):
        self.checkpoint, self.current = checkpoint, current

    def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        run = partial(self.run, self.current.route, self.current.thread.run, function)
        return self.checkpoint(run, *args, **kwargs)

    def run(self, route: Route | None, run: Pass, function: Callable, *args: Any, **kwargs: Any) -> Any:
        with self.current.again(route, run):
            return function(*args, **kwargs)
