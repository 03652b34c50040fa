"""A model's own entrances, seen from the host: what is called on it, and what must be known about that call.

`forward` may run reader by reader, `generate` repeats rows for beams, continuous batching works in a thread of its own
and keeps what it computed for the next call. Each entrance stands in the model's own dictionary in front of its class's
function; `close` takes it away. They are objects, not closures: a deep copy of the model has its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core import CommonweightError, counted
from .apart import Unfit, by_reader, cut, is_cache, uncached
from .current import Current, Pass
from .embedded import of_tokens
from .hooks import arrive
from .images import cut_of, images_by_row
from .invoked import remember
from .order import Order
from .route import Route, size
from .tenant import Tenant


class Entrance:
    """One function of a model, by name; called, it runs that function as the model had it. over: another entrance of
    it, which runs it reader by reader, and within which this one stands."""

    name = ""

    def __init__(self, model: nn.Module, current: Current, over: Entrance | None = None):
        self.model, self.current, self.over = model, current, over
        self.before = model.__dict__.get(self.name)  # what stood there already, for example accelerate's forward
        self.__doc__ = getattr(model, self.name).__doc__

    @property
    def __signature__(self) -> inspect.Signature:  # trainers choose columns by it
        return inspect.signature(self.own)

    @property
    def own(self) -> Callable:
        # no bound method: after a break of the graph torch.compile makes it anew as `model.forward`, which is this one
        return self.before or partial(getattr(type(self.model), self.name), self.model)

    def install(self) -> None:
        if self.over is None:
            self.model.__dict__[self.name] = self
        else:
            self.before, self.over.before = self.over.before, self

    def remove(self) -> None:
        if self.over is not None and self.over.before is self:
            self.over.before = self.before
        # what stood over it may have gone, and left it in its place
        if self.model.__dict__.get(self.name) is self:  # else somebody put something in front of it, which calls it
            del self.model.__dict__[self.name]
            if self.before is not None:
                self.model.__dict__[self.name] = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.own(*args, **kwargs)


class Called(Entrance):
    """What torch.compile takes of a model: brings the traced copy of the route up to date, and is itself not traced."""

    name = "__call__"

    def install(self) -> None:
        self.model.__dict__[self.name] = self.run  # a bound method: torch.compile looks into callable objects

    def remove(self) -> None:
        self.model.__dict__.pop(self.name, None)

    @torch.compiler.disable(recursive=False)
    def run(self, *args: Any, **kwargs: Any) -> Any:
        before = self.bring(args, kwargs)
        try:
            return getattr(type(self.model), self.name)(self.model, *args, **kwargs)
        finally:
            self.current.thread.brought = before
            self.current.thread.run.end()  # a traced forward does not

    @torch.compiler.disable
    def bring(self, args: tuple, kwargs: dict) -> bool:
        before = self.current.thread.brought
        found = size(args, kwargs)
        self.current.bring(found)
        self.current.thread.begin(self.model, args, kwargs)
        arrive(self.model, found, compiled=True)
        self.current.thread.brought = True
        return before


def bring(model: nn.Module, args: tuple, kwargs: dict) -> None:
    """Before a call of a model that may be traced, outside of what is traced: the route is the one in force. Nothing of
    a model whose host is closed."""
    if (entrance := model.__dict__.get(Called.name)) is not None:
        entrance.__self__.bring(args, kwargs)


class Forward(Entrance):
    """A pass of the whole model. Where a site cannot find the rows of a mixed batch, reader by reader from then on, for
    whoever reads there."""

    name = "forward"

    def __init__(self, model: nn.Module, current: Current):
        super().__init__(model, current)
        self.apart: dict[str, str] = {}  # sites that cannot find the rows: why; "" where none can, whoever reads
        self.looked: set[frozenset[str]] = set()  # sites of tenants whose layers were seen to be given rows first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.own(*args, **kwargs)
        try:
            out = self.routed(*args, **kwargs)
            remember(self.current.thread.run, out)
            return out
        finally:
            self.current.thread.run.end()

    def routed(self, *args: Any, **kwargs: Any) -> Any:
        route = self.current.route
        if route is None or route.single is not None:
            return self.own(*args, **kwargs)
        found = size(args, kwargs)
        by_row = route.by_row(found)
        readers = {t.places for t, _ in route.groups if t is not None}
        if by_row and self.apart and (why := self.known(readers, kwargs.get("encoder_outputs") is not None)):
            return self.cut(why, route, args, kwargs)
        several = found is not None and found[0] > 1 and (by_row or found == route.shape)
        try:
            if several and not readers <= self.looked:
                self.look(route, found[0], args, kwargs)  # type: ignore[index]
            out = self.own(*args, **kwargs)
        except Unfit as why:
            if not by_row:
                raise
            out = self.cut(str(why), route, args, kwargs)
            self.apart.update(dict.fromkeys(why.sites or ("",), str(why)))
            return out
        if several:
            self.looked |= readers
        return out

    def known(self, readers: Iterable[frozenset[str]], encoded: bool = False) -> str | Unfit | None:
        """Why a batch of readers of these sites does not fit; None as far as is known. encoded: an encoder has run."""
        padding = self.current.padding
        runs = {n: w for n, w in self.apart.items() if not (encoded and padding is not None and padding.of_encoder(n))}
        return next((why for site, why in runs.items() if not site or any(site in r for r in readers)), None)

    def cut(self, why: str | Unfit, route: Route, args: tuple, kwargs: dict) -> Any:
        try:
            return self.by_reader(route, args, kwargs)
        except Unfit as e:
            raise CommonweightError(f"{why} (and the batch cannot be run reader by reader: {e})") from None

    def look(self, route: Route, rows: int, args: tuple, kwargs: dict) -> None:
        """No shape tells for certain where a layer has the rows of a batch: there may be as many tokens (XLNet and FSMT
        turn them), queries, or entries of a table. So up to four rows are run first, in both orders, once for all
        tenants of the same sites: one that finds something else in the rows' place raises Unfit there.

        Cost: two passes of these rows without gradients, in the mode for evaluation: nothing is drawn.
        """
        kept = {k: v for k, v in kwargs.items() if not is_cache(k, v)} | ({self.caching: False} if self.caching else {})
        some = [*range(min(rows, 4) - 1), rows - 1]
        turns = some, some[::-1]
        try:
            given = [cut((args, kept), torch.tensor(few), rows) for few in turns]
        except Unfit:
            return
        order, training = Order(), [m for m in self.model.modules() if m.training]
        for m in training:
            m.training = False
        try:
            with torch.no_grad():
                for few, (a, k) in zip(turns, given):
                    mine = route.pick(few)
                    mine.order, order.turned = order, few is turns[1]
                    self.current.thread.begin(self.model, a, k)
                    with self.current.within(mine):
                        self.own(*a, **k)
        except Unfit:
            raise
        except Exception:  # the model wants its batch whole
            return
        finally:
            self.current.thread.begin(self.model, args, kwargs)
            for m in training:
                m.training = True

    @property
    def caching(self) -> str | None:
        """The option that says whether it keeps a cache, where it does unless it is told not to; some models hand the
        option on without naming it."""
        known = inspect.signature(self).parameters
        if "use_mems" in known:  # XLNet
            return "use_mems"
        passed_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        config: Any = getattr(self.model, "config", None)
        own = [config, *([config.get_text_config()] if hasattr(config, "get_text_config") else [])]
        told = "use_cache" in known or (passed_on and any(hasattr(c, "use_cache") for c in own))
        return "use_cache" if told else None

    def by_reader(self, route: Route, args: tuple, kwargs: dict) -> Any:
        images = None
        if not images_by_row(self.model, kwargs, route.length):
            images = cut_of(self.model, kwargs, route.length)
            if images is None:
                raise Unfit("the images of all rows lie in one list, of which it cannot be known which row each is of")
        run = partial(_within, self.current, self.model, route)
        if (option := self.caching) is None or kwargs.get(option) is not None:
            return by_reader(run, route.groups, args, kwargs, route.length, images)
        try:  # as the model does by default: FSMT answers otherwise where it keeps no cache
            return by_reader(uncached(run), route.groups, args, kwargs, route.length, images)
        except Unfit:
            if getattr(self.model.config, "model_type", "") == "fsmt":
                raise
        try:  # a state that stands among the results in a form of its own
            return by_reader(run, route.groups, args, {**kwargs, option: False}, route.length, images)
        except (TypeError, KeyError) as e:  # its config knows the option, its forward does not
            if option not in str(e):
                raise
        return by_reader(run, route.groups, args, kwargs, route.length, images)


class Generate(Entrance):
    """Generation. A mixed route gets a copy of its own, whose rows may be repeated for beams or contrastive search; so
    does one of tenants that act from some tokens of the prompt on, or go by its embedding."""

    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        route = self.current.route
        invoked = route is not None and route.root.invocations
        by_prompt = route is not None and route.root.prompted
        if route is None or (route.single is not None and not invoked and not by_prompt):
            return self.own(*args, **kwargs)
        mine = route.root.again()
        mine.prompt = _prompt(args, kwargs) if invoked else None
        if by_prompt and mine.context is None:
            _one_text(kwargs, "which has a prompt of its own")
            if Pass(self.model, (), kwargs).past:
                raise CommonweightError(
                    "generate: a cache holds what a prompt before this one made, and a tenant here goes by the "
                    "prompt's embedding; leave past_key_values out, or say which prompt: host.route(..., prompts=[...])"
                )
            mine.asked = True
        config = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
        penalty, top_k = (kwargs.get(k, getattr(config, k, None)) for k in ("penalty_alpha", "top_k"))
        if penalty and top_k and top_k > 1:
            mine.factors.add(top_k)
        with self.current.within(mine):
            return self.own(*args, **kwargs)


def _prompt(args: tuple, kwargs: dict) -> torch.Tensor:
    """The token ids that `generate` is given. Raises: CommonweightError for none, and where some of its passes read
    another text."""
    given = [kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]]
    found = next((v for v in given if isinstance(v, torch.Tensor) and not v.is_floating_point()), None)
    if found is None:
        raise CommonweightError(
            "generate: an activated LoRA begins where the token ids of the prompt say; give it input_ids"
        )
    _one_text(kwargs, "in which an activated LoRA has no beginning")
    return found if found.dim() > 1 else found[None]


def _one_text(kwargs: dict, why: str) -> None:
    """Raises: CommonweightError where some passes of `generate` read another text than the prompt."""
    config = kwargs.get("generation_config")
    if (kwargs.get("guidance_scale", getattr(config, "guidance_scale", None)) or 1) != 1:
        raise CommonweightError(f"generate: guidance_scale reads a second text without the prompt, {why}; leave it out")


def _alike(route: Route | None) -> None:
    """Raises: CommonweightError where rows that are packed in one begin to act at some token each, or have a context
    each."""
    if route is not None and route.root.invocations:
        raise CommonweightError(
            "continuous batching of transformers packs all texts into one row, in which an activated LoRA's beginnings "
            "cannot be told; use generate, or commonweight.serve.Engine"
        )
    if route is not None and route.root.prompted:
        raise CommonweightError(
            "continuous batching of transformers packs all texts into one row, of which it cannot be told whose prompt "
            "ends where, and a tenant here goes by its embedding; use generate, or commonweight.serve.Engine"
        )


class Expand(Entrance):
    """Where generation repeats each row, one copy after the other; prompts and their mask are known by then."""

    name = "_expand_inputs_for_generation"

    def __call__(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        route = self.current.route
        if route is not None and expand_size > 1:
            route.root.factors |= {expand_size, *(expand_size * f for f in route.root.factors)}
        if route is not None and route.root.asked:
            ids, mask, x = (kwargs.get(k) for k in ("input_ids", "attention_mask", "inputs_embeds"))
            route.root.context, route.root.asked = of_tokens(self.model, self.current, ids, mask, x), False
        return self.own(expand_size, *args, **kwargs)


class GenerateBatch(Entrance):
    """Continuous batching packs all rows into one: of a mixed route, reader by reader."""

    name = "generate_batch"

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        route = self.current.route
        _alike(route)
        if route is None or route.single is not None:
            return self.own(inputs, *args, **kwargs)
        route = route.root
        if (route.shape is not None and len(route.shape) > 1) or route.length != len(inputs):
            raise CommonweightError(
                f"generate_batch: the route names {counted(route.length, 'reader')}, there are {len(inputs)} prompts; "
                "give one reader per prompt (None for the plain base)"
            )
        if kwargs.get("persistent_manager"):
            raise CommonweightError(
                "generate_batch: a manager that persists answers as one tenant; route one at a time"
            )
        found: dict[int, list[Any]] = {}
        for reader, places in route.groups:
            part = _as(self.current, self.own, reader, [inputs[p] for p in places], *args, **kwargs)
            for result in part.values():
                request, *child = result.request_id.split(_CHILD)
                place = places[int(request.removeprefix(_REQUEST))]
                result.request_id = _CHILD.join([f"{_REQUEST}{place}", *child])
                found.setdefault(place, []).append(result)
        return {r.request_id: r for _, results in sorted(found.items()) for r in results}


_REQUEST, _CHILD = "req_", "__child#"  # how transformers names requests, and further sequences of one


class Continuous(Entrance):
    """A manager of continuous batching: its thread answers as one reader, and so does its cache of prefixes."""

    name = "init_continuous_batching"

    def __init__(self, model: nn.Module, current: Current):
        super().__init__(model, current)
        self.reader: Any = None  # of the manager that transformers keeps for the next call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reader = self.reading()
        _alike(self.current.route)
        if reader is not None and not self.model._can_set_attn_implementation():  # type: ignore[operator]
            raise CommonweightError(
                f"continuous batching: the attention of {type(self.model).__name__} cannot read the paged cache, and "
                "answers would forget the prompt after their first token; use generate, which takes mixed batches too"
            )
        if reader != self.reader:
            self.model.destroy_cached_continuous_batching_manager()  # type: ignore[operator]
        self.reader = reader
        manager = self.own(*args, **kwargs)
        if not isinstance(manager.__dict__.get("add_request"), Asked):
            manager.add_request = Asked(manager.add_request, self, reader)
            manager.start = Asked(manager.start, self, reader)
        return manager

    def reading(self) -> Any:
        """The key of the one tenant in force: of one that goes by tasks, of one task."""
        route = self.current.route
        if route is not None and route.single is None:
            raise CommonweightError(
                "a manager of continuous batching packs all requests into one row and answers as one tenant; open the "
                "route of one tenant around it, or call generate_batch, which takes a reader per prompt"
            )
        return None if route is None or route.single is None else route.single.key


class Asked:
    """A manager's function: refused under another route than the one that the manager was made under."""

    def __init__(self, function: Callable, entrance: Continuous, reader: Any):
        self.function, self.entrance, self.reader = function, entrance, reader

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.entrance.reading() != self.reader:
            raise CommonweightError(
                "this manager of continuous batching was made under another route, as which its thread answers and "
                "its cache was computed; make one per tenant (and task), each inside host.route(...)"
            )
        return self.function(*args, **kwargs)


def _within(current: Current, run: Callable, route: Route, reader: Tenant | None, *args: Any, **kwargs: Any) -> Any:
    with current.within(route.alone(reader)):
        return run(*args, **kwargs)


def _as(current: Current, run: Callable, reader: Tenant | None, *args: Any, **kwargs: Any) -> Any:
    with current.within(None if reader is None else Route(single=reader)):
        return run(*args, **kwargs)


KINDS = Called, Forward, Generate, Expand, GenerateBatch, Continuous


def install(model: nn.Module, current: Current) -> list[Entrance]:
    """Every entrance that the model has."""
    found: list[Entrance] = [kind(model, current) for kind in KINDS if hasattr(model, kind.name)]
    for e in found:
        e.install()
    return found
