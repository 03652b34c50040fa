"""Who reads: one tenant for the whole batch, one per row, or one per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import CommonweightError
from .order import Order
from .sites import Physical
from .tenant import Entry, Tenant, takes_input


class Bucket(NamedTuple):
    """Places of the batch that are served by one call at a site.

    tenants, entries: who, and the uses of each at the site ([] for the plain base). where: the places; None for all
    of them in order. reader: per place, which of `entries` it reads; None when the i-th place reads the i-th.
    kept: what is worth keeping while the route is open.
    """

    tenants: list[Tenant | None]
    entries: list[list[Entry]]
    where: Tensor | None
    reader: Tensor | None
    kept: dict[Any, Any]


class Layout(NamedTuple):
    """What one site makes of a route. order: puts the buckets' places, one after another, back into the batch's order;
    None where one bucket has them all. inputs: whether any use is on the input side."""

    buckets: list[Bucket]
    order: Tensor | None
    inputs: bool


class Route:
    """single: the one tenant, or None. Otherwise `groups`: (tenant or None, its places in order of the batch).

    What a site makes of a route does not change while the route lives, so it is worked out once per site.
    factors: how many times each row may be repeated, one copy after the other, as generation does for beams.
    """

    __slots__ = (
        "_invocations", "_layouts", "_orders", "_plans", "_readers", "_repeated", "asked", "context", "factors",
        "groups", "images", "kept", "length", "order", "prompt", "root", "rows", "shape", "single", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        groups: Sequence[tuple[Tenant | None, list[int]]] = (),
        single: Tenant | None = None,
        shape: tuple[int, ...] | None = None,
    ):
        self.single, self.shape = single, shape
        self.images = True  # whether each row brings its own images, as far as can be known
        self.rows = 0  # of the model's input in the forward that runs
        self.tokens = 0  # per row, of the model's input in the forward that runs
        self.prompt: Tensor | None = None  # what `generate` was given, (rows, T), where a reader goes by it
        self.context: Tensor | None = None  # the embeddings of its rows' prompts, (places, d), where they are known
        self.asked = False  # whether `generate` is to say them
        self.order: Order | None = None  # of a forward that is run to see where its rows go
        self.groups = list(groups)
        for t in (single, *(t for t, _ in self.groups)):
            if t is not None:
                t.table  # noqa: B018  made here: one that a compiled model's first pass makes costs a guard an entry
        self.length = sum(len(p) for _, p in self.groups)
        self._layouts: dict[Any, Layout] = {}
        self.kept: dict[Any, Any] = {}  # what others work out of it, once
        self._orders: dict[Any, tuple[list[tuple], Tensor | None]] = {}
        self.root, self.factors = self, set[int]()
        self._repeated: dict[int, Route] = {}
        self._readers: tuple | None = None
        self._invocations: list[tuple[int, ...]] | None = None
        self._plans: list[Any] = []

    def begin(self, rows: int, tokens: int) -> int:
        """A forward of so many rows, and tokens each, begins. Returns the rows. What was worked out of plans that
        readers have no more is forgotten, see `replanned.become`."""
        self.rows, self.tokens = rows, tokens
        if torch.compiler.is_compiling():
            return rows
        plans = [t and t.plan for t, _ in self.groups]
        if any(a is not b for a, b in zip(plans, self._plans)):
            for held in (self._layouts, self.kept, self._repeated):
                held.clear()
        self._plans = plans
        return rows

    @property
    def readers(self) -> tuple:
        """Who reads where, as plain numbers: equal for routes that answer alike."""
        if self._readers is None:
            groups = [(None if t is None else t.key, tuple(places)) for t, places in self.groups]
            told = self.context is not None and id(self.context)
            self._readers = (self.single and self.single.key, self.shape, told, *groups)
        return self._readers

    def again(self) -> Route:
        """The same readers, for other work: nothing that a forward pass leaves on a route is shared."""
        out = Route(self.groups, self.single, self.shape)
        out.prompt, out.context = self.prompt, self.context
        return out

    def alone(self, reader: Tenant | None) -> Route | None:
        """One reader's rows, in their order; None for the plain base's."""
        if reader is None:
            return None
        out = Route(single=reader)
        places = next(p for t, p in self.groups if t is reader)
        out.prompt, out.context = (None if x is None else x[places] for x in (self.prompt, self.context))
        return out

    @property
    def invocations(self) -> list[tuple[int, ...]]:
        """The tokens from which on its readers act, of those who do not act everywhere."""
        if self._invocations is None:
            readers = [self.single] if self.single is not None else [t for t, _ in self.groups]
            self._invocations = [i for t in readers if t is not None for i in t.invocations]
        return self._invocations

    @property
    def prompted(self) -> bool:
        """Whether a reader goes by the embedding of a row's prompt."""
        readers = [self.single] if self.single is not None else [t for t, _ in self.groups]
        return any(t is not None and t.prompted for t in readers)

    def pick(self, rows: list[int]) -> Route:
        """The readers of some rows alone, in that order."""
        each = self.length if self.shape is None else self.shape[0]
        each = self.length // max(1, each)  # places of a row
        at = {p: t for t, places in self.groups for p in places}
        shape = None if self.shape is None else (len(rows), *self.shape[1:])
        out = Route.of([at[r * each + i] for r in rows for i in range(each)], shape)
        out.images, out.tokens = self.images, self.tokens
        out.prompt, out.context = (None if x is None else x[rows] for x in (self.prompt, self.context))
        return out

    def by_row(self, found: tuple[int, int] | None) -> bool:
        """Whether a reader is a row of a batch of this size, and no token."""
        return self.shape is None or (len(self.shape) == 1 and found is not None and found[0] == self.length)

    def fitting(self, rows: int) -> Route:
        """This route, or the one in which every row stands as often as the batch has it; itself where none fits."""
        root = self.root
        per_row = root.shape is None or len(root.shape) == 1
        factor = rows // root.length if per_row and root.length else 0
        if root.length == rows or factor not in root.factors or factor * root.length != rows:
            return root
        if factor not in root._repeated:
            groups = [(t, [p * factor + i for p in places for i in range(factor)]) for t, places in root.groups]
            root._repeated[factor] = found = Route(groups)
            found.root = root
            told = root.prompt, root.context
            found.prompt, found.context = (None if x is None else x.repeat_interleave(factor, 0) for x in told)
        return root._repeated[factor]

    @classmethod
    def of(cls, readers: Sequence[Tenant | None], shape: tuple[int, ...] | None = None) -> Route:
        """One reader per row; shape: that of the tensor of numbers they came in, for which tokens are places too."""
        places: dict[Tenant | None, list[int]] = {}
        for i, tenant in enumerate(readers):
            places.setdefault(tenant, []).append(i)
        return cls(list(places.items()), shape=shape)

    def touches(self, site: str) -> bool:
        """Whether any reader has a use at the site."""
        if self.single is not None:
            return site in self.single.table
        return any(t is not None and site in t.table for t, _ in self.groups)

    def fold(self, x: Tensor) -> tuple[Tensor, bool] | None:
        """(x with this route's places first, whether a place is a row); None when x does not fit the route.

        Per row: (B, ..., d), or (B T, d) where a layer is fed all tokens in one list. Per token: (B, T, d) or (B T, d)
        for numbers of shape (B, T), and (1, T, d) for numbers of shape (T,).
        """
        n, lead, d = self.length, tuple(x.shape[:-1]), x.shape[-1]
        if self.shape is not None and len(self.shape) == 2:
            return (x.reshape(n, d), False) if lead in (self.shape, (n,)) else None
        if lead[:1] == (n,):
            return x, True
        if self.shape is not None and lead == (1, n):
            return x[0], False
        return (x.reshape(n, self.tokens, d), True) if lead == (n * self.tokens,) else None

    def layout(self, site: str, by_row: bool, device: torch.device, at: Physical | None = None) -> Layout:
        """By row, tenants share a bucket when their binds and shapes agree here and the bind has a grouped form.

        at: which forms hold there; where the output is no linear product, a change of the input is one of the weight.
        """
        key = (site, by_row, device)
        found = None if torch.compiler.is_compiling() else self._layouts.get(key)
        if found is None:
            found = self._layouts[key] = self._layout(site, by_row, device, at)
        return found

    def _layout(self, site: str, by_row: bool, device: torch.device, at: Physical | None) -> Layout:
        entries = [tenant.table.get(site, []) if tenant is not None else [] for tenant, _ in self.groups]
        keys = [self._key(i, found, by_row, at) for i, found in enumerate(entries)]
        first: dict[Any, int] = {}
        parts, order = self._sorted(tuple(first.setdefault(k, i) for i, k in enumerate(keys)), device)
        buckets = [
            Bucket([self.groups[i][0] for i in members], [entries[i] for i in members], where, reader, {})
            for members, where, reader in parts
        ]
        return Layout(buckets, order, (at is None or at.forms == "all") and any(map(takes_input, entries)))

    def _key(self, group: int, entries: list[Entry], by_row: bool, at: Physical | None) -> Any:
        """What groups must agree in to share a bucket at a site."""
        if not entries:
            return "base"
        by_row = by_row and (at is None or at.holds(entries[0].bind))
        together = by_row and len(entries) == 1 and entries[0].grouped is not None and entries[0].rows is None
        return entries[0].signature if together else ("alone", group)

    def _sorted(self, alike: tuple[int, ...], device: torch.device) -> tuple[list[tuple], Tensor | None]:
        """Per bucket, (its groups, where, reader) of `Bucket`, and the order back. alike: per group, the first group
        of its bucket. Most sites agree in it, so that it is worked out once for them all."""
        found = None if torch.compiler.is_compiling() else self._orders.get((alike, device))
        if found is not None:
            return found
        buckets: dict[int, list[int]] = {}
        for i, bucket in enumerate(alike):
            buckets.setdefault(bucket, []).append(i)
        parts, order, one = [], [], len(buckets) == 1
        for members in buckets.values():
            pairs = sorted((p, n) for n, i in enumerate(members) for p in self.groups[i][1])
            where, reader = [p for p, _ in pairs], [n for _, n in pairs]
            order += where
            straight = reader == list(range(len(members)))
            parts.append(
                (
                    members,
                    None if one else torch.tensor(where, device=device),
                    None if straight else torch.tensor(reader, device=device),
                )
            )
        found = self._orders[alike, device] = parts, None if one else torch.tensor(order, device=device).argsort()
        return found


def numbered(numbers: Tensor, tenants: Mapping[int, Tenant]) -> list[Tenant | None]:
    """Who these are, of a LongTensor of tenant numbers, -1 for the plain base: its entries in order."""
    flat = numbers.reshape(-1).tolist()
    if unknown := sorted(set(flat) - {-1} - tenants.keys()):
        raise CommonweightError(
            f"no tenant has the number {unknown[0]}; known: {sorted(tenants)}, and -1 for the plain base"
        )
    return [tenants.get(n) for n in flat]


def size(args: tuple, kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    """(rows, tokens per row) of a model's call, by its first tensor; None where it has none."""
    named = [kwargs.get(k) for k in ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")]
    x = next((v for v in (*args, *named, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 0), None)
    return None if x is None else (x.shape[0], x.shape[1] if x.dim() > 1 else 1)
