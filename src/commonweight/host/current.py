"""The route in force: a piece of state that belongs to a unit of work, not to a thread.

A context variable holds it, so that every task of an event loop has its own, and work that goes to another thread
takes it along (`carry`). torch.compile cannot trace a context variable: while it traces, sites read a copy that belongs
to the thread, which the model's entrance brings up to date before each call, outside of what is traced.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from functools import wraps
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ..core import CommonweightError
from .padding import Padding
from .route import Route, size
from .stacks import Room

NOTHING: Mapping[Any, Any] = {}
NOWHERE = 2**62  # the position of what is no token of a row
# host's Current -> its State. One variable for all hosts: whoever carries it to another thread carries every route.
ROUTES: ContextVar[Mapping[Current, State]] = ContextVar("commonweight_routes", default=NOTHING)


class State:
    """What a unit of work knows: its route (None: the plain base, said so) and whether a checkpoint replays it."""

    __slots__ = ("awake", "ended", "generator", "outer", "replayed", "route", "unit")

    def __init__(self, route: Route | None, replayed: bool = False):
        self.route, self.replayed = route, replayed
        self.outer: State | None = None  # the one that was in force where this one was opened
        self.generator: list[State] | None = None  # the routes of the generator that opened it, this one among them
        self.awake: list[list[State]] = []  # the routes of each generator that ran when it was opened
        self.unit: Any = None  # the thread and task in which a generator opened it
        self.ended = False  # whether that generator has closed it

    def again(self) -> State:
        """The same for other work, in another thread."""
        return State(self.route and self.route.root.again(), self.replayed)


_UNSAID = State(None)


class Pass:
    """One pass of the model: what it was given, and what is kept of it for its sites. Where a checkpoint computes a
    part of it again in backward, that part finds its own pass, whatever ran since."""

    def __init__(self, module: Any = None, args: tuple = (), kwargs: Mapping[str, Any] = NOTHING):
        named = kwargs
        if len(args) > 1:
            known = inspect.signature(module.forward).parameters
            named = {**dict(zip(known, args)), **kwargs}
        masks = "attention_mask", "decoder_attention_mask", "decoder_input_ids"
        self.given: tuple[Any, tuple, Mapping[str, Any]] | None = (module, args, kwargs)  # None: it has ended
        self.masks = {k: named[k] for k in masks if k in named}  # which tokens are no padding
        if isinstance(other := named.get("input_mask"), Tensor) and self.masks.get("attention_mask") is None:
            self.masks["attention_mask"] = 1 - other  # XLNet's: which are
        held = [n for v in named.values() if (n := _length(v))]
        self.past = bool(held)  # whether a cache holds tokens from before it
        self.behind = max(held, default=0)  # how many; -1 where a cache does not count them
        self.cached = any(hasattr(v, "get_seq_length") for v in named.values())  # whether there is one, if empty
        self.ids = ids if isinstance(ids := named.get("input_ids", args[0] if args else None), Tensor) else None
        self.starts: dict[tuple[int, ...], Tensor] = {}  # invocation -> column of each row from which on it acts
        self.since: dict[tuple[int, ...], Tensor] = {}  # invocation -> how far behind it each token is, (B, T, 1)
        self.numbers = named.get("position_ids")
        self.labels = named.get("labels")
        self.vectors = named.get("inputs_embeds")
        self.kept = named.get("logits_to_keep")  # of which tokens scores are wanted, where not of all
        self.rows = 0 if (found := size(args, kwargs)) is None else found[0]
        self.states: dict[str, Tensor] = {}  # trunk -> what its blocks gave
        self.calls: dict[Any, Any] = {}  # queries site and block -> how the block was called, for one token
        self.made: dict[str, Any] = {}  # prefix site -> keys and values that its attention made, for queries
        self.queries: Mapping[str, Tensor] | None = None  # list of blocks -> what the plain base makes of each row
        self.embedded: Tensor | None = None  # the mean of each row's input embeddings, where somebody goes by it
        self.numbered: set[str] = set()  # tables whose tokens were given what their positions bring
        self.shown: set[str] = set()  # blocks that had not shown before what they give, see `bypass`
        self.longer: dict[str, Any] = {}  # prompt site of an encoder -> its longer rows

    def masks_of(self, length: int) -> Mapping[str, Any]:
        """Which of so many tokens of a row are no padding: with prompts in them, rows are longer."""
        found = self.longer_by(length)
        return self.masks if found is None or found.mask is None else {**self.masks, "attention_mask": found.mask}

    def longer_by(self, length: int) -> Any:
        """The longer rows that have so many tokens; None for those of the caller's."""
        return next((v.rows for v in self.longer.values() if v.rows.long == length), None)

    def positions(self, ids: Tensor) -> Tensor:
        """Which token of its row each is, (B, T), padding aside: as the caller says, else by the mask and the cache.
        Padding, and what is no token of the caller's, is nowhere."""
        found = next((v.rows for v in self.longer.values() if v.rows.long <= ids.shape[1]), None)
        if found is not None:
            own = self.positions(ids[:, : found.tokens])
            own = found.joined(own, own.new_full((len(own), found.more), NOWHERE))
            left = ids.shape[1] - found.long
            return torch.nn.functional.pad(own, (0, left), value=NOWHERE)  # Longformer fills up its window
        (b, t), said, mask = ids.shape, self.numbers, self.masks.get("attention_mask")
        if isinstance(said, Tensor) and said.dim() == 2 and said.shape[0] in (1, b) and said.shape[1] == t:
            return said.expand(b, -1)
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == b and mask.shape[1] >= t:
            end = self.behind + t if 0 <= self.behind <= mask.shape[1] - t else mask.shape[1]
            return (mask[:, :end].long().cumsum(-1) - 1).masked_fill(mask[:, :end] == 0, NOWHERE)[:, -t:]
        behind = max(self.behind, 0)
        return torch.arange(behind, behind + t, device=ids.device).expand(b, -1)

    def counted_padding(self, given: Tensor) -> Tensor | None:
        """(B, 1): how many tokens of padding on the left a model has counted in the positions (1 or B, T) that it made
        itself; None where the caller said positions, or nothing tells."""
        t = given.shape[-1]
        mask = self.masks_of(t).get("attention_mask")
        if self.numbers is not None or self.behind < 0 or not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        if given.dim() != 2 or given.shape[0] not in (1, mask.shape[0]) or mask.shape[1] < t:
            return None
        left = (mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
        return left * (given[:, -1:] == self.behind + t - 1)  # else it has left them out itself

    def end(self) -> None:
        self.given = None


class _OfThread(threading.local):
    """What belongs to a thread indeed: the copy that is traced, and memory that is used again and again."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.brought = False  # whether it was brought up to date outside of what is compiled
        self.module: Any = None  # the tenants' module whose route is open
        self.room = Room()
        self.given_to: dict[str, Any] = {}  # block, or part of one, that runs -> what it was given, or its Skip
        self.lenders: dict[str, Any] = {}  # site whose input another reads -> the site, for its own mathematics
        self.copied: Any = None  # the shallow copy of a layer whose forward comes next
        self.asking = False  # whether the plain base runs to say what rows are
        self.joined: set[str] = set()  # prefix sites whose attention runs and has been given its keys and values
        self.recording: dict[str, Any] | None = None  # prefix site -> keys and values of a prompt that runs by itself
        self.given: Route | None = None  # of the rows that an expert of a list is given, while it runs
        self.heard: Any = None  # where routers say what they say, while somebody listens
        self.complete = False  # whether every gate of a token is open
        self.run = Pass()  # the pass of the model that runs, or ran last
        self.answering: dict[str, Any] | None = None  # keys and values, while blocks answer to queries

    def begin(self, module: Any, args: tuple, kwargs: dict) -> None:
        """A pass of the model begins."""
        self.run = Pass(module, args, kwargs)

    @contextmanager
    def aside(self, run: Pass) -> Iterator[None]:
        """Another pass, within one or between two: what is kept of those is not its own, and nobody listens to it."""
        before = self.given_to, self.joined, self.run, self.heard
        self.given_to, self.joined, self.run, self.heard = {}, set(), run, None
        try:
            yield
        finally:
            self.given_to, self.joined, self.run, self.heard = before


def _length(cache: Any) -> int:
    """Tokens that a cache holds; of one that does not count them -1 where it holds any."""
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        return 0
    try:
        if not hasattr(cache, "linear_cache"):
            return int(length())
        held = [int(length(i)) for i in range(len(cache.layers))]  # MiniMax's: a layer with a state says 0
        return max(held, default=0) or -int(any(len(s) for s in cache.linear_cache))
    except (ValueError, TypeError, NotImplementedError):  # states alone, or one length a layer
        seen: Any = getattr(cache, "has_previous_state", False)
        return -int(bool(seen() if callable(seen) else seen))


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
        self.padding: Padding | None = None  # of the model; a copy has none until it is hooked
        self.prompts = False  # whether its rows begin with prompts, of which a row's embedding is
        self.turns = threading.RLock()  # in modules that keep between passes what their weights gave
        self.open: dict[int, int] = {}  # thread -> how many routes it has open
        self.generators: dict[FrameType, list[State]] = {}  # generator -> the routes that it has open, by its frame
        self._lock = threading.Lock()

    def there(self, site: str, x: Tensor) -> Tensor | None:
        """Which tokens of what a site is given (B, T, d) are no padding, (B, T); None where nothing says so, as in a
        part of the model that is called by itself, of which no mask is known."""
        run = self.thread.run
        texts = run.ids is not None and not run.ids.is_floating_point()
        if self.padding is None or not self.within_pass:
            return None
        masks = run.masks_of(x.shape[1]) if run.longer and x.dim() > 1 else run.masks
        known = run.cached and not self.padding.of_encoder(site)
        return self.padding.there(masks, texts, site, x, run.behind if known else -1)

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
    def within_pass(self) -> bool:
        """Whether the whole model runs, or what it did is computed again; else what is known is of an earlier pass."""
        return self.thread.run.given is not None or self.replayed or torch._C._current_graph_task_id() != -1

    @property
    def replayed(self) -> bool:
        """Whether a checkpoint that keeps its route has set it."""
        return ROUTES.get().get(self, _UNSAID).replayed

    @property
    def room(self) -> Room:
        return self.thread.room

    def bring(self, size: tuple[int, int] | None = None) -> None:
        """Before a forward pass: the route is the one for so many rows, and what is traced reads it."""
        self.settle()
        state = ROUTES.get().get(self, _UNSAID)
        if self.generators:
            self._resumed(state)
        if size is not None and state.route is not None and state.route.single is None:
            state.route = state.route.fitting(size[0])
        self.thread.route = self.route

    def within(self, route: Route | None, replayed: bool = False) -> Opened:
        """A context manager (and decorator): within it, and in what is started in it, this route is in force."""
        return Opened(self, State(route, replayed))

    @contextmanager
    def again(self, route: Route | None, run: Pass) -> Iterator[None]:
        """A checkpoint computes a part of a pass once more, under the route of its forward."""
        thread = self.thread
        before, thread.run = thread.run, run
        try:
            with self.within(route, replayed=True):
                yield
        finally:
            thread.run = before

    def put(self, state: State | None) -> None:
        """In force here from now on; None: nothing is said. What other hosts have open stays."""
        rest = {c: s for c, s in ROUTES.get().items() if c is not self}
        ROUTES.set(rest if state is None else {**rest, self: state})

    def settle(self) -> None:
        """What is in force here may be the route of a generator that has ended since: then the one before that."""
        state = found = ROUTES.get().get(self)
        while found is not None and found.ended and found.unit == unit():
            found = found.outer
        if found is not state:
            self.put(found)

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

    def _resumed(self, state: State) -> None:
        """A generator runs in the context of whoever asks for its next value, which may not be the one in which it
        opened its route (a server that streams from threads takes another one for each value); and while it sleeps,
        its route stays in force for whoever asked."""
        frames = self.running(sys._getframe(2))
        if frames:
            mine, within = self.generators[frames[0]], state
            while within is not None and within is not mine[-1]:
                within = within.outer if any(g is mine for g in within.awake) else None
            if within is None:
                raise CommonweightError(
                    f"{frames[0].f_code.co_name}, a generator, has a route open that is not in force here: it is "
                    "resumed in another context (another thread, task or route) than the one in which it opened it. "
                    "Open the route around each call of the model, not around a yield"
                )
        awake = [self.generators[f] for f in frames]
        if state.generator is not None and not any(g is state.generator for g in awake) and state.unit == unit():
            raise CommonweightError(
                "the route that is in force here was opened by a generator that waits at a yield: it cannot be known "
                "whose work this is. Open the generator's route around each call of the model, not around a yield, or "
                "open host.route(...) here (host.route(None) for the plain base)"
            )

    def running(self, frame: FrameType | None) -> list[FrameType]:
        """The generators with an open route that run now, the innermost first."""
        found = []
        while frame is not None:
            if frame in self.generators:
                found.append(frame)
            frame = frame.f_back
        return found

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
        self._opened: list[tuple[State, int, FrameType | None]] = []

    def _recreate_cm(self) -> Opened:  # as a decorator: one opening a call
        return Opened(self.current, self.state)

    def __call__(self, function: Any) -> Any:
        """As a decorator: a coroutine is within the route until it has ended."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise CommonweightError(
                f"{function.__name__} is a generator, which runs after the call that a decorator sees: open the route "
                "inside of it, around each call of the model, not around a yield"
            )
        if not inspect.iscoroutinefunction(function):
            return super().__call__(function)

        @wraps(function)
        async def routed(*args: Any, **kwargs: Any) -> Any:
            with self._recreate_cm():
                return await function(*args, **kwargs)

        return routed

    def __enter__(self) -> None:
        current, state = self.current, State(self.state.route, self.state.replayed)
        state.outer = ROUTES.get().get(current)
        thread, frame = threading.get_ident(), generator(sys._getframe(1))
        if frame is not None:
            state.generator, state.unit = current.generators.setdefault(frame, []), unit()
            state.generator.append(state)
        if current.generators:
            state.awake = [current.generators[f] for f in current.running(sys._getframe(1))]
        current.put(state)
        self._opened.append((state, thread, frame))
        SPEAKS.yes = True
        current.thread.route = state.route
        current._count(thread, +1)

    def __exit__(self, kind: Any, *_: Any) -> None:
        state, thread, frame = self._opened.pop()
        current = self.current
        current._count(thread, -1)
        if frame is not None:
            state.ended = True
            current.generators[frame].remove(state)
            if not current.generators[frame]:
                del current.generators[frame]
        found = here = ROUTES.get().get(current)
        while found is not None and found is not state:
            found = found.outer
        if here is state:
            current.put(state.outer)
            current.settle()
        if found is None:  # another context: a generator that was closed elsewhere; that context's routes are its own
            return
        current.thread.route = ROUTES.get().get(current, _UNSAID).route
        if here is not state and kind is None:
            raise CommonweightError(
                "a route was closed while one that was opened after it was still open, so that work between them may "
                "have had the wrong tenant. It happens where generators that open routes take turns: open the route "
                "around each call of the model, not around a yield"
            )


def generator(frame: FrameType | None) -> FrameType | None:
    """The generator in which a route is opened, if it is one; a context manager that opens it is part of its user."""
    while frame is not None and frame.f_globals.get("__name__") != "contextlib":
        back = frame.f_back
        if back is None or back.f_globals.get("__name__") != "contextlib":
            kinds = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
            return frame if frame.f_code.co_flags & kinds else None
        frame = back
    while frame is not None and frame.f_globals.get("__name__") == "contextlib":
        frame = frame.f_back
    return None if frame is None else generator(frame)


def unit() -> tuple[int, Any]:
    """The thread, and the task of an event loop that runs in it."""
    asyncio = sys.modules.get("asyncio")
    try:
        return threading.get_ident(), None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return threading.get_ident(), None


def speaks() -> bool:
    return SPEAKS.yes or threading.current_thread() is threading.main_thread()
