"""Keys and values of tenants in front of those that an attention makes, row by row, inside transformers' attention.

Models ask `AttentionInterface.get_interface` for the function that attends; what they get here is that function with
the rows' own keys and values put in front of it, under sdpa and eager attention. No cache knows of them, nothing gets
longer: masks, labels, logits and caches stay the caller's. Shorter prefixes are padded, and the padding is masked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import CommonweightError, counted
from .apart import Unfit
from .aside import AsideHook
from .current import Current
from .embedded import embedded
from .heard import keep, keeps
from .queries import Queries, one_width
from .route import Route
from .sites import Ahead
from .states import recomputing
from .tenant import Entry, Tenant

HOOK = "_commonweight_ahead"  # what a hooked attention keeps, to be found by the function that it asked for
FUNCTIONS = ("sdpa", "eager", "commonweight_rows", "commonweight_paged")  # that take further keys as they are


class Rows(NamedTuple):
    """keys, values: (B, heads, M, d), or (1, ...) where all rows have the same; see: (B, M), which of them are there;
    None: all."""

    keys: Tensor
    values: Tensor
    see: Tensor | None


def install() -> None:
    """Once a process, by the first host that comes when transformers is there."""
    cls = getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)
    if cls is not None and hasattr(cls, "get_interface") and not hasattr(cls.get_interface, "joins_keys"):
        cls.get_interface = _asked(cls.get_interface)


def _asked(get: Callable) -> Callable:
    @wraps(get)
    def found(self: Any, attn_implementation: str, default: Callable) -> Callable:
        return partial(attend, get(self, attn_implementation, default), attn_implementation)

    found.joins_keys = True  # type: ignore[attr-defined]
    return found


def attend(function: Callable, named: str, module: Any, *args: Any, **kwargs: Any) -> Any:
    """`function` with what the route puts in front at this module. Cost without a route: one look-up."""
    hook: AheadHook | None = getattr(module, "__dict__", {}).get(HOOK)
    if hook is not None and hook.current.thread.answering is not None:
        return hook.answered(function, named, *args, **kwargs)
    route = None if hook is None else hook.current.route
    if hook is None or route is None:
        return function(module, *args, **kwargs)
    if hook.current.thread.recording is not None:
        hook.record(*args, **kwargs)
        return function(module, *args, **kwargs)
    if hook.asked and route.touches(hook.asked) and not recomputing():
        hook.note(*args, **kwargs)
    join = partial(hook.joined, route, function, named) if hook.touched(route) else partial(function, module)
    y = join(*args, **kwargs)
    if hook.aside is not None and route.touches(hook.aside.at.name):
        return hook.aside.added(route, y, args[0], kwargs.get("scaling"))
    return y


class AheadHook:
    """At one attention. It sits in the module's own dictionary, so that a copy of the model has the copy's."""

    def __init__(
        self, at: Ahead, current: Current, queries: Queries, front: str = "", asked: str = "",
        aside: AsideHook | None = None,
    ):  # fmt: skip
        self.at, self.current, self.queries = at, current, queries
        self.front = front  # the site of prompts whose keys and values come here
        self.asked = asked  # the site of queries that read the keys and values made here
        self.aside = aside  # for tokens that are read beside those of a row

    def install(self) -> list[Any]:
        self.at.module.__dict__[HOOK] = self
        return [self.at.module.register_forward_hook(self.reached), self]

    def remove(self) -> None:
        self.at.module.__dict__.pop(HOOK, None)

    def reached(self, module: nn.Module, args: tuple, y: Any) -> None:
        """Raises: CommonweightError where a routed prefix did not come into the attention that has run."""
        route, joined = self.current.route, self.current.thread.joined
        if route is None or self.current.thread.recording is not None:
            return
        wanted = {self.at.name} if self.touched(route) else set()
        if self.aside is not None and route.touches(self.aside.at.name):
            wanted.add(self.aside.at.name)
        if lost := wanted - joined:
            raise CommonweightError(
                f"{lost.pop()}: this attention ran without asking transformers' attention interface for its function "
                "(an option of its config that computes by itself, or a forward that was replaced), so that no keys "
                "can join it; load the model with attn_implementation='sdpa', or take a method that changes weights"
            )
        joined -= wanted

    def touched(self, route: Route) -> bool:
        return route.touches(self.at.name) or (self.front != "" and route.touches(self.front))

    def record(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> None:
        """Of a prompt that runs by itself, one row."""
        assert self.current.thread.recording is not None
        self.current.thread.recording[self.at.name] = key[0], value[0]

    def note(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> None:
        """For queries, which read a row's own tokens and have no part in what is kept of them."""
        thread, t = self.current.thread, query.shape[2]
        see = self.current.there(self.at.name, query[:, 0])
        thread.run.made[self.at.name] = Rows(key[:, :, :t].detach(), value[:, :, :t].detach(), see)

    def answered(
        self, function: Callable, named: str, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Queries: what they say of themselves is not read; a row's tokens are, but for padding."""
        thread = self.current.thread
        assert thread.answering is not None
        if named not in FUNCTIONS:
            raise CommonweightError(
                f"{self.at.name}: {named} attention cannot be asked by queries; call "
                "model.set_attn_implementation('sdpa') (or 'eager') before you route a tenant that has some"
            )
        keys, values, see = thread.answering[self.at.name]
        if see is not None:
            see = see[:, None, None].expand(-1, 1, query.shape[2], -1)
            see = bent(see, query.dtype) if named == "eager" else see
        kwargs = {k: v for k, v in kwargs.items() if k != "position_bias"} | {"is_causal": False}
        return function(self.at.module, query, keys, values, see, *args, **kwargs)

    def joined(
        self, route: Route, function: Callable, named: str, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        at, rows = self.at, key.shape[0]
        if named not in FUNCTIONS:
            raise CommonweightError(
                f"{at.name}: {named} attention takes no keys in front of a row; call "
                "model.set_attn_implementation('sdpa') (or 'eager') before you route a tenant with a prefix"
            )
        packed = kwargs.get("cache") is not None and named == "commonweight_paged"
        if kwargs.get("cache") is not None and not packed:
            raise CommonweightError(
                f"{at.name}: transformers' own continuous batching takes no keys in front of a request; take "
                "commonweight's engine, or host.route and generate"
            )
        for x in (key, value):
            if (x.shape[1], x.shape[3]) != (at.heads, at.width):
                raise CommonweightError(
                    f"{at.name}: keys and values have {x.shape[1]} heads of {x.shape[3]} here, the site has {at.heads} "
                    f"of {at.width}; leave it out"
                )
        if packed and (route.single is not None or route.shape == (query.shape[2],)):
            self.current.thread.joined.add(at.name)
            kwargs["ahead"] = self.rows(route, key)
            return function(at.module, query, key, value, attention_mask, *args, **kwargs)
        if route.single is None and (route.length != rows or (route.shape is not None and len(route.shape) > 1)):
            raise Unfit(
                f"{at.name}: keys and values stand in front of a row, and the route names "
                f"{counted(route.length, 'reader')} for {counted(rows, 'row')}; give one reader per row",
                at.name,
            )
        self.current.thread.joined.add(at.name)
        front = self.rows(route, key)
        mask = self.mask(route, front, attention_mask, query, key, named == "eager", kwargs)
        more = front.keys.shape[2]
        if (bias := kwargs.get("position_bias")) is not None:
            kwargs["position_bias"] = F.pad(bias, (more, 0))  # T5: none for keys that have no position
        key = torch.cat([front.keys.expand(rows, -1, -1, -1), key], 2)
        value = torch.cat([front.values.expand(rows, -1, -1, -1), value], 2)
        return function(self.at.module, query, key, value, mask, *args, **kwargs)

    def rows(self, route: Route, like: Tensor) -> Rows:
        """What stands in front, made anew where gradients are recorded or each row has its own; else kept while the
        route is open and no pool is written."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.made(route, like)
        groups = [(route.single, [])] if route.single is not None else route.groups
        names = self.at.name, self.front
        uses = [e for t, _ in groups if t is not None for n in names for e in t.table.get(n, [])]
        if any(getattr(e.bind, "asks", False) for e in uses):
            return self.made(route, like)
        pools = [p for e in uses for _, _, read in e.reads for p in read]
        try:
            written = [(p._version, p.data_ptr()) for p in pools]
        except RuntimeError:  # pools made in inference mode do not count their writes
            return self.made(route, like)
        at = ("ahead", self.at.name, like.dtype, like.device)
        found = route.kept.get(at)
        if found is None or found[0] != written:
            found = route.kept[at] = written, self.made(route, like)
        return found[1]

    def made(self, route: Route, like: Tensor) -> Rows:
        if route.single is not None:
            k, v = self.of(route, route.single, like)
            if k.dim() == 4:  # several tenants as one, each with its own part of the rows
                k, v = (x.repeat_interleave(len(like) // len(x), 0) for x in (k, v))
                return Rows(k, v, None)
            return Rows(k[None], v[None], None)
        pairs = [self.of(route, t, like, places) for t, places in route.groups]
        sizes = [k.shape[-2] for k, _ in pairs]
        most = max(sizes)
        reader, begins = [0] * route.length, [0] * route.length
        first = 0  # of a group's among all that stand in front: one for the group, or one for each of its rows
        for i, (_, places) in enumerate(route.groups):
            own = pairs[i][0].dim() == 4
            for j, p in enumerate(places):
                reader[p], begins[p] = i, first + j * own
            first += len(places) if own else 1
        index, at = (torch.tensor(x, device=like.device) for x in (reader, begins))
        even, in_order = min(sizes) == most, begins == list(range(first))
        k, v = (
            torch.cat([x if even else F.pad(x, (0, 0, most - x.shape[-2], 0)) for x in (_rowwise(y) for y in ys)])
            for ys in zip(*pairs)
        )
        if not in_order:
            k, v = k[at], v[at]
        if even:
            return Rows(k, v, None)
        free = torch.tensor([most - n for n in sizes], device=like.device)[index]
        return Rows(k, v, torch.arange(most, device=like.device) >= free[:, None])

    def of(
        self, route: Route, tenant: Tenant | None, like: Tensor, places: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(keys, values) of one tenant, (heads, m, d) each, or (rows, heads, m, d) where each of its rows has its own;
        m is 0 where it has none. places: of its rows; None: all are."""
        table = {} if tenant is None else tenant.table
        apart = [self.read(e, route, tenant, like, places) for e in table.get(self.at.name, [])]
        pairs = [
            [x.unflatten(-1, (self.at.heads, self.at.width)).transpose(-3, -2).to(like) for x in pair] for pair in apart
        ]
        if tenant is not None and self.front in table:
            states = route.kept.get(("front", tenant.number))
            if states is None or self.at.name not in states[1]:
                raise CommonweightError(
                    f"{self.at.name}: the prompt of tenant {tenant.name!r} has not run; call the decoder as a whole"
                )
            pairs.insert(0, [x.to(like) for x in states[1][self.at.name]])
        if not pairs:
            none = like.new_empty(self.at.heads, 0, self.at.width)
            return none, none
        return torch.cat([k for k, _ in pairs], -2), torch.cat([v for _, v in pairs], -2)

    def read(
        self, entry: Entry, route: Route, tenant: Tenant | None, like: Tensor, places: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        bind, slots = entry.bind, entry.slots(like.dtype)
        if not getattr(bind, "asks", False):
            return bind.ahead(**slots)
        plain = getattr(bind, "by", "base") == "base"
        n = len(like) if route.single is not None else route.length  # of a route: rows, or a packed row's tokens
        query = self.queries.of(self.at.name, n) if plain else embedded(self.at.name, n, self.current)
        one_width(self.at.name, query.shape[1], slots["K0"].shape[-1])
        query = query if places is None else query[torch.tensor(places, device=query.device)]
        if keeps(heard := self.current.thread.heard) and hasattr(bind, "cosines"):
            keep(heard, [tenant], None, query.new_ones(len(query), 1), self.at.name, bind.cosines(query, **slots))
        return bind.ahead(query, **slots)

    def mask(
        self, route: Route, front: Rows, mask: Tensor | None, query: Tensor, key: Tensor, added: bool, kwargs: dict
    ) -> Tensor | None:
        """The attention's mask with the columns of what stands in front. added: it is added to the scores."""
        causal = kwargs.get("is_causal")
        causal = getattr(self.at.module, "is_causal", True) if causal is None else causal
        t, s, m = query.shape[2], key.shape[2], front.keys.shape[2]
        causal = bool(causal) and mask is None and t > 1 and not added  # eager attention goes by its mask alone
        if mask is None and front.see is None and not causal:
            return None
        kept = None if torch.compiler.is_compiling() else route.kept.get("ahead mask")
        asked = mask, (t, s, m, causal, added, query.dtype), front.see
        if kept is not None and kept[0][0] is mask and kept[0][1] == asked[1] and same(kept[0][2], front.see):
            return kept[1]
        if mask is None:
            mask = torch.ones(t, s, dtype=torch.bool, device=query.device)
            mask = (mask.tril() if causal else mask)[None, None]  # as sdpa: a static cache has its free places behind
            mask = bent(mask, query.dtype) if added else mask
        mask = mask[..., :s]
        see = torch.ones(1, m, dtype=torch.bool, device=query.device) if front.see is None else front.see
        see = see[:, None, None]
        see = see if mask.dtype == torch.bool else bent(see, mask.dtype)
        rows = max(len(see), len(mask))
        out = torch.cat([x.expand(rows, mask.shape[1], t, -1) for x in (see, mask)], -1)
        route.kept["ahead mask"] = asked, out
        return out


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))


def bent(see: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen, the smallest number where it is not."""
    return torch.zeros(see.shape, dtype=dtype, device=see.device).masked_fill_(~see, torch.finfo(dtype).min)


def _rowwise(x: Tensor) -> Tensor:
    """(heads, m, d) as one row."""
    return x if x.dim() == 4 else x[None]
