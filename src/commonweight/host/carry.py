"""Work that goes to another thread takes its routes along.

A new thread of Python starts with an empty context (up to 3.13; 3.14 can hand it on), and an executor runs what it is
given in whatever context its worker was started in. The usual form of streaming, a thread that runs `generate` inside a
route, would then answer as the plain base. So `Thread.start` and `ThreadPoolExecutor.submit` take along the one context
variable that holds the routes, and nothing else; without a host in the process they are Python's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any

from .current import NOTHING, ROUTES, SPEAKS, Current, State, speaks

Routes = Mapping[Current, State]


def install() -> None:
    """Once a process, by the first host. Others may have put their own functions there; they are called as before."""
    if not hasattr(threading.Thread.start, "carries_routes"):
        threading.Thread.start = _start(threading.Thread.start)
    if not hasattr(ThreadPoolExecutor.submit, "carries_routes"):
        ThreadPoolExecutor.submit = _submit(ThreadPoolExecutor.submit)


def _start(start: Callable) -> Callable:
    @wraps(start)
    def carrying(self: threading.Thread) -> None:
        routes = ROUTES.get()
        # workers of a pool serve whoever comes; what they are given is not what their starter was doing
        if routes and not type(self).__module__.startswith("multiprocessing"):
            self.run = partial(_work, routes, self.run)
        start(self)

    carrying.carries_routes = True  # type: ignore[attr-defined]
    return carrying


def _submit(submit: Callable) -> Callable:
    @wraps(submit)
    def carrying(self: ThreadPoolExecutor, fn: Callable, /, *args: Any, **kwargs: Any) -> Any:
        if speaks():
            fn = partial(_item, ROUTES.get(), fn)
        before = ROUTES.set(NOTHING)  # a worker that this starts has no route of its own
        try:
            return submit(self, fn, *args, **kwargs)
        finally:
            ROUTES.reset(before)

    carrying.carries_routes = True  # type: ignore[attr-defined]
    return carrying


def _own(routes: Routes) -> Routes:
    """Two threads that do the work of one route must not write to one object."""
    return {current: state.again() for current, state in routes.items()}


def _work(routes: Routes, run: Callable[[], None]) -> None:
    ROUTES.set(_own(routes))
    SPEAKS.yes = True
    run()


def _item(routes: Routes, fn: Callable, *args: Any, **kwargs: Any) -> Any:
    before, spoke = ROUTES.set(_own(routes)), SPEAKS.yes
    SPEAKS.yes = True
    try:
        return fn(*args, **kwargs)
    finally:
        SPEAKS.yes = spoke
        ROUTES.reset(before)
