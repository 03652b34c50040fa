"""The route in force: a piece of state that belongs to a unit of work, not to a thread.

A context variable holds it, so that every task of an event loop has its own, and work that goes to another thread
takes it along (`carry`). torch.compile cannot trace a context variable: while it traces, sites read a copy that belongs
to the thread, which the model's entrance brings up to date before each call, outside of what is traced.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Any

from torch.compiler import is_dynamo_compiling

from ..core import CommonweightError
from .route import Route
from .stacks import Room

NOTHING: Mapping[Any, Any] = {}
# host's Current -> its State. One variable for all hosts: whoever carries it to another thread carries every route.
ROUTES: ContextVar[Mapping[Current, State]] = ContextVar("commonweight_routes", default=NOTHING)


class State:
    """What a unit of work knows: its route (None: the plain base, said so) and whether a checkpoint replays it."""

    __slots__ = ("replayed", "route")

    def __init__(self, route: Route | None, replayed: bool = False):
        self.route, self.replayed = route, replayed

    def again(self) -> State:
        """The same for other work, in another thread."""
        return State(self.route and self.route.root.again(), self.replayed)


_UNSAID = State(None)


class _OfThread(threading.local):
    """What belongs to a thread indeed: the copy that is traced, and memory that is used again and again."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.brought = False  # whether it was brought up to date outside of what is compiled
        self.room = Room()


class _Speaks(threading.local):
    """Whether a thread says what it wants: it has opened a route itself, or its work came with the routes of whoever
    handed it over. Where such a thread says nothing, it wants the plain base."""

    yes = False


SPEAKS = _Speaks()


class Current:
    """The route in force here. Copies of a host start with none.

    Cost of a look: two look-ups in Python, about 0.1 microseconds.
    """

    def __init__(self) -> None:
        self.thread = _OfThread()
        self.open: dict[int, int] = {}  # thread -> how many routes it has open
        self._lock = threading.Lock()

    @property
    def route(self) -> Route | None:
        if is_dynamo_compiling():
            return self.thread.route
        state = ROUTES.get().get(self)
        if state is not None:
            return state.route
        if self.open:
            self._known()
        return None

    @property
    def replayed(self) -> bool:
        """Whether a checkpoint that keeps its route has set it."""
        return ROUTES.get().get(self, _UNSAID).replayed

    @property
    def room(self) -> Room:
        return self.thread.room

    def bring(self, size: tuple[int, int] | None = None) -> None:
        """Before a forward pass: the route is the one for so many rows, and what is traced reads it."""
        state = ROUTES.get().get(self, _UNSAID)
        if size is not None and state.route is not None and state.route.single is None:
            state.route = state.route.fitting(size[0])
        self.thread.route = self.route

    def within(self, route: Route | None, replayed: bool = False) -> Opened:
        """A context manager (and decorator): within it, and in what is started in it, this route is in force."""
        return Opened(self, State(route, replayed))

    def _known(self) -> None:
        """Nobody said a route here, but one is open elsewhere: is this the plain base's work, or that route's?

        For the main thread, a thread that opens routes by itself, and another task of the very thread that has it open,
        saying nothing means the plain base. For any other thread it cannot be known: it may work through what others
        hand to it.
        """
        if speaks() or set(self.open) == {threading.get_ident()}:
            return
        raise CommonweightError(
            f"the thread {threading.current_thread().name!r} runs the model without a route, while a route is open in "
            "another thread: it cannot be known whose work this is. Open host.route(...) in this thread "
            "(host.route(None) for the plain base), or hand the work over with contextvars.copy_context().run(...); "
            "threads that are started inside a route, and executors, carry it by themselves"
        )

    def _count(self, thread: int, by: int) -> None:
        with self._lock:
            left = self.open.get(thread, 0) + by
            if left:
                self.open[thread] = left
            else:
                self.open.pop(thread, None)

    def __deepcopy__(self, memo: dict) -> Current:
        return Current()

    def __reduce__(self):
        return (Current, ())


class Opened(ContextDecorator):
    """One opening of a route. What it had found is put back when it closes, in the context in which it was opened."""

    def __init__(self, current: Current, state: State):
        self.current, self.state = current, state
        self._before: list[tuple[Token, Mapping, int]] = []

    def _recreate_cm(self) -> Opened:  # as a decorator: one opening a call
        return Opened(self.current, self.state)

    def __enter__(self) -> None:
        mine = {**ROUTES.get(), self.current: self.state}
        thread = threading.get_ident()
        self._before.append((ROUTES.set(mine), mine, thread))
        SPEAKS.yes = True
        self.current.thread.route = self.state.route
        self.current._count(thread, +1)

    def __exit__(self, kind: Any, *_: Any) -> None:
        token, mine, thread = self._before.pop()
        self.current._count(thread, -1)
        innermost = ROUTES.get() is mine
        try:
            ROUTES.reset(token)
        except ValueError:  # another context: a generator that was closed elsewhere; that context's routes are its own
            return
        finally:
            self.current.thread.route = ROUTES.get().get(self.current, _UNSAID).route
        if not innermost and kind is None:
            raise CommonweightError(
                "a route was closed while one that was opened after it was still open, so that work between them may "
                "have had the wrong tenant. It happens where generators that open routes take turns: open the route "
                "around each call of the model, not around a yield"
            )


def speaks() -> bool:
    return SPEAKS.yes or threading.current_thread() is threading.main_thread()
