"""Many tenants of one plan as one tenant, whose trained pools have a leading dimension: one of them each.

A batch then holds the rows of the first, those of the second, and so on, the same number of each; the frozen base reads
it once, and each tenant's numbers meet its own rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ..core import Base, Plan, Read, Use
from ..host import Tenant


@dataclass(frozen=True)
class Each:
    """An address, once for each tenant. many: which of its pools have the leading dimension."""

    address: Any
    many: tuple[bool, ...]

    def __call__(self, *pools: Tensor) -> Tensor:
        if not any(self.many):
            return self.address(*pools)
        if not getattr(self.address, "mapped", True):
            n = next(len(p) for p, m in zip(pools, self.many) if m)
            return torch.stack([self.address(*(p[i] if m else p for p, m in zip(pools, self.many))) for i in range(n)])
        return vmap(self.address, in_dims=tuple(0 if m else None for m in self.many))(*pools)


@dataclass(frozen=True)
class Stacked:
    """A bind, once for each tenant. many: the slots that have the leading dimension n; the others are one for all.

    Shapes: x (n b, ..., d_in), y (n b, ..., d_out) -> as y. Cost: the bind's `grouped` form where it has one and reads
    tokens one by one (n readers) or goes by whole rows (n b readers); else its `output` under vmap; else its `weight`,
    n dense weights.
    """

    bind: Any
    many: frozenset[str]

    @property
    def precise(self) -> bool:
        return getattr(self.bind, "precise", False)

    @property
    def anywhere(self) -> str:
        return getattr(self.bind, "anywhere", "")

    @property
    def whole(self) -> bool:
        return getattr(self.bind, "whole", False)

    @property
    def placed(self) -> bool:
        return getattr(self.bind, "placed", False)

    @property
    def input(self) -> Callable[..., Tensor] | None:
        return self._input if getattr(self.bind, "input", None) is not None else None

    def _input(self, x: Tensor, base: Base, **slots: Tensor) -> Tensor:
        n = self.size(slots)
        out = self.mapped(lambda x, **slots: self.bind.input(x, base, **slots), slots)(apart(x, n))
        return out.flatten(0, 1)

    @property
    def opens(self) -> Callable[..., Tensor] | None:
        return self._opens if getattr(self.bind, "opens", None) is not None else None

    def _opens(self, x: Tensor, base: Any, there: Tensor | None, **slots: Tensor) -> Tensor:
        each, n = [], self.size(slots)
        for i, rows in enumerate(apart(x, n)):
            mine = {k: v[i] if k in self.many else v for k, v in slots.items()}
            seen = base.of_places(apart(base.place, n)[i]) if self.placed else base
            each.append(self.bind.opens(rows, seen, None if there is None else apart(there, n)[i], **mine))
        return torch.cat(each)

    def output(self, x: Tensor, y: Tensor, base: Any, **slots: Tensor) -> Tensor:
        n, bind = self.size(slots), self.bind
        if self.whole:  # every row is a reader of its own
            b = len(x) // n
            every = {
                k: v.repeat_interleave(b, 0) if k in self.many else v.expand(n * b, *v.shape) for k, v in slots.items()
            }
            out = bind.grouped(x.reshape(n * b, -1, x.shape[-1]), y.reshape(n * b, -1, y.shape[-1]), base, **every)
            return out.reshape(y.shape)
        if getattr(bind, "grouped", None) is not None and getattr(bind, "tokenwise", True):
            every = {k: v if k in self.many else v.expand(n, *v.shape) for k, v in slots.items()}
            given = x.reshape(n, -1, x.shape[-1])
            return bind.grouped(given, y.reshape(n, -1, y.shape[-1]), base, **every).reshape(*y.shape[:-1], -1)
        if self.placed and getattr(bind, "output", None) is not None:
            run = self.mapped(lambda x, y, p, **slots: bind.output(x, y, base.of_places(p), **slots), slots)
            return run(apart(x, n), apart(y, n), apart(base.place, n)).flatten(0, 1)
        if getattr(bind, "output", None) is not None:
            out = self.mapped(lambda x, y, **slots: bind.output(x, y, base, **slots), slots)(apart(x, n), apart(y, n))
            return out.flatten(0, 1)
        if getattr(bind, "weight", None) is None:  # all of it is done on the input
            return y
        w = self.mapped(lambda **slots: bind.weight(base.weight, **slots), slots)()
        bias = base.bias
        if bias is not None and getattr(bind, "bias", None) is not None:
            bias = self.mapped(lambda **slots: bind.bias(base.bias, **slots), slots)()
        elif bias is not None:
            bias = bias.expand(n, *bias.shape)
        if w.dim() == 3 and base.forms == "all":
            out = base.many(x.reshape(n, -1, x.shape[-1]), w.to(x))
            return (out if bias is None else out + bias[:, None].to(out)).reshape(*x.shape[:-1], -1)
        rows = enumerate(apart(x, n))
        return torch.cat([base.call(r, w[i].to(x), None if bias is None else bias[i].to(x)) for i, r in rows])

    @property
    def follows(self) -> bool:
        return getattr(self.bind, "follows", False)

    @property
    def asks(self) -> bool:
        return getattr(self.bind, "asks", False)

    @property
    def by(self) -> str:
        return getattr(self.bind, "by", "base")

    def ahead(self, *query: Tensor, **slots: Tensor) -> tuple[Tensor, Tensor]:
        """(n, m, w) each: every tenant's for its own rows; (n b, m, w) of a bind that asks, query (n b, d)."""
        mine = [apart(q, self.size(slots)) for q in query]
        k, v = self.mapped(lambda *q, **slots: self.bind.ahead(*q, **slots), slots)(*mine)
        return (k.flatten(0, 1), v.flatten(0, 1)) if query else (k, v)

    def front(self, **slots: Tensor) -> Tensor:
        """(n, m, d): every tenant's vectors for its own rows."""
        return self.mapped(lambda **slots: self.bind.front(**slots), slots)()

    def queries(self, **slots: Tensor) -> Tensor:
        """(n, blocks, T, d): every tenant's queries for its own rows."""
        return self.mapped(lambda **slots: self.bind.queries(**slots), slots)()

    def tokens(self, **slots: Tensor) -> Tensor:
        """(n, N, d): every tenant's tokens."""
        return self.mapped(lambda **slots: self.bind.tokens(**slots), slots)()

    def aside(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, **slots: Tensor) -> Tensor:
        """Of every tenant for its own rows: query (n b, heads, T, w), keys and values (n, heads of keys, N, w)."""
        run = self.mapped(lambda q, k, v, **slots: self.bind.aside(q, k, v, scale, **slots), slots)
        return run(apart(query, len(keys)), keys, values).flatten(0, 1)

    def places(self, **slots: Tensor) -> int:
        one = {k: v[0] if k in self.many else v for k, v in slots.items()}
        return self.bind.places(**one) if hasattr(self.bind, "places") else 0

    def size(self, slots: Mapping[str, Tensor]) -> int:
        return next(len(slots[k]) for k in slots if k in self.many)

    def mapped(self, function: Callable[..., Any], slots: Mapping[str, Tensor]) -> Callable[..., Any]:
        """function(*rows, **slots) for each tenant."""
        names = list(slots)

        def one(*given: Tensor) -> Tensor:
            k = len(given) - len(names)
            return function(*given[:k], **dict(zip(names, given[k:])))

        dims = tuple(0 if k in self.many else None for k in names)
        return lambda *rows: vmap(one, in_dims=(*(0 for _ in rows), *dims), randomness="different")(
            *rows, *slots.values()
        )


def apart(x: Tensor, n: int) -> Tensor:
    """(n b, ...) as (n, b, ...)."""
    return x.reshape(n, len(x) // n, *x.shape[1:])


def stacked(plan: Plan, n: int, names: Collection[str]) -> Plan:
    """The plan of n tenants as one. names: the pools that they train; the others are one for all."""
    pools = {
        k: replace(p, shape=(n, *p.shape)) if k in names else replace(p, train=False) for k, p in plan.pools.items()
    }
    return plan._replace(pools=pools, uses=tuple(map(partial(_use, names), plan.uses)))


def _use(names: Collection[str], use: Use) -> Use:
    many = {k: tuple(p in names for p in r.pools) for k, r in use.reads.items()}
    if not any(map(any, many.values())):
        return use
    reads = {
        k: Read(Each(r.address, many[k]) if len(r.pools) > 1 or not _whole(r) else r.address, r.pools)
        for k, r in use.reads.items()
    }
    return Use(use.site, Stacked(use.bind, frozenset(k for k, m in many.items() if any(m))), reads)


def _whole(read: Read) -> bool:
    return type(read.address).__name__ == "Whole"


def together(like: Tenant, pools: Mapping[str, Tensor], plan: Plan) -> Tenant:
    """A tenant that is on no list of its host's: n of `like` as one. pools: the trained ones, each (n, *shape).
    plan: `stacked`."""
    held = {k: nn.Parameter(pools[k]) if p.train else like.pools[k] for k, p in plan.pools.items()}
    out = Tenant(
        like.name, like.number, like.method, like.config, plan, held, like.rows, like.labels, like.sites, None,
        like.ties, like.beside, like.held,
    )  # fmt: skip
    out.base, out.vocabulary, out.known = like.base, like.vocabulary, like.known
    return out


def stack(each: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The named tensors of n clients, each (n, *shape), in memory of their own."""
    return {k: torch.stack([one[k] for one in each]) for k in names}


def beside(each: Sequence[Tensor]) -> Tensor:
    """(n, *shape) to read; of one tensor the same memory."""
    return each[0][None] if len(each) == 1 else torch.stack(list(each))
