"""Tokens behind a prefix stand so many positions further on, where the model turns positions into numbers. Of rows that
meet keys without rotation no padding is counted in them.

Both ways are followed: tables of positions (BERT, GPT-2, BART's decoder) and rotations (Llama). Their modules are given
the positions, whoever made them, so that nothing needs to be known of how a model counts. Of an encoder and a decoder
each moves by what stands ahead in it; one whose table counts by itself (BART's encoder) does not move.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current
from .names import paired
from .route import Route
from .sites import Aside, Further, Physical, entries, parameters, plain_class, positional, towers
from .tenant import Tenant


class Moved:
    """Before a module that is given positions. stack: whose tokens', "" of all. at: where among its arguments they are.
    without: sites of prompts, which stand in a row and are counted there. aside: those of tokens that queries read
    beside their row. entries: of a table, and how many of them stand before position 0."""

    def __init__(
        self, name: str, stack: str, sites: list[str], current: Current, at: int, without: frozenset[str],
        aside: frozenset[str], entries: tuple[int, int] | None,
    ):  # fmt: skip
        self.name, self.stack, self.sites, self.current, self.without = name, stack, sites, current, without
        self.at, self.aside, self.entries = at, aside, entries

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        route = self.current.route
        if route is None or self.current.thread.recording is not None:
            return None
        by, met = self.by(route), self.unturned(route)
        if by is None and met is None:
            return None
        given = args[self.at] if len(args) > self.at else kwargs.get("position_ids")
        if not isinstance(given, Tensor) or given.is_floating_point():
            return None
        if self.entries is not None and given.dim() == 1 and isinstance(by, list) and route.shape is None:
            moved = (given + torch.tensor(by, device=given.device)[:, None]).flatten()  # a row's after another's
            self.current.thread.given_to[f"{self.name} rows"] = len(by)
        else:
            moved = given if by is None else given + self.fitting(by, route, given)
            if met is not None and route.shape is None:
                moved = self.without_padding(moved, met, given)
        if self.entries is not None and not torch.compiler.is_compiling():
            last = self.entries[0] - self.entries[1] - 1
            if int(moved.max()) > last:
                raise CommonweightError(
                    f"a prefix moves the tokens behind it to position {int(moved.max())}, and the model's table of "
                    f"positions ends at {last}; give shorter rows, or a tenant with fewer tokens ahead"
                )
        if len(args) > self.at:
            return (*args[: self.at], moved, *args[self.at + 1 :]), kwargs
        return args, {**kwargs, "position_ids": moved}

    def without_padding(self, moved: Tensor, met: int | list[int], given: Tensor) -> Tensor:
        """Of rows that meet keys which are not rotated (`unturned`): positions that a model makes itself count the
        padding before a row. Between a row's own tokens this is nothing, to such keys it is. Others stay as they are,
        to the bit."""
        left = self.current.thread.run.counted_padding(given)
        if left is None:
            return moved
        if isinstance(met, list):
            if len(met) != len(left):
                return moved
            left = left * torch.tensor(met, device=left.device)[:, None]
        return moved - left

    def by_row(self, module: nn.Module, args: tuple, y: Any) -> Any:
        """What a table gave for positions that were one list for all rows, (rows, T, d)."""
        rows = self.current.thread.given_to.pop(f"{self.name} rows", None)
        return None if rows is None else y.reshape(rows, -1, y.shape[-1])

    def by(self, route: Route) -> int | list[int] | None:
        """By how many positions: of all rows, or of each place of the route; None where nobody has a prefix."""
        return _each(route, ("moved by", self.stack), lambda t: places(t, self.stack, self.without))

    def unturned(self, route: Route) -> int | list[int] | None:
        """Whose tokens meet keys without rotation: 1 for all rows, or 1 or 0 for each place; None where nobody's do, or
        nothing is rotated."""
        if self.entries is not None or self.stack:
            return None
        beside = self.aside
        key = "unturned", self.name
        return _each(route, key, lambda t: int(not t.places.isdisjoint(beside) or places(t, "", self.without) > 0))

    def fitting(self, by: int | list[int], route: Route, given: Tensor) -> int | Tensor:
        """(rows, 1), or the shape of the positions where the route has a reader for each token."""
        if isinstance(by, int):
            return by
        n = torch.tensor(by, device=given.device)
        if route.shape is not None and (len(route.shape) == 2 or route.rows == 1):
            return n.view(-1, route.shape[-1])
        if given.dim() > 1 and given.shape[-2] not in (1, len(by)):
            raise Unfit(
                f"positions are given for {counted(given.shape[-2], 'row')}, and the route names "
                f"{counted(len(by), 'reader')}; give one reader per row",
                *self.sites,
            )
        return n[:, None] if given.dim() > 1 else n


def _each(route: Route, key: Any, of: Callable[[Tenant], int]) -> int | list[int] | None:
    """A number of each tenant: of the one, or for each place of the route; None where all are 0. Worked out once."""
    if key not in route.kept:
        if route.single is not None:
            route.kept[key] = of(route.single) or None
        else:
            out = [0] * route.length
            for tenant, mine in route.groups:
                n = 0 if tenant is None else of(tenant)
                for p in mine:
                    out[p] = n
            route.kept[key] = out if any(out) else None
    return route.kept[key]


@torch.no_grad()
def places(tenant: Tenant, stack: str, without: frozenset[str] = frozenset()) -> int:
    """By how many positions a tenant moves its tokens of a stack: the most that stands ahead of them in a layer.
    without: sites of prompts that are counted as tokens are."""
    if not any(hasattr(b, "places") for b in tenant.binds):
        return 0
    each = [
        sum(e.bind.places(**e.slots(None)) for e in entries if hasattr(e.bind, "places"))
        for n, entries in tenant.table.items()
        if n not in without and (not stack or _stack(n) == stack)
    ]
    return max([0, *each])  # as torch.compile can trace it


def install(model: nn.Module, names: dict[str, nn.Module], modules: dict[str, Physical], current: Current) -> list[Any]:
    """Hooks on what is given positions, in the towers and stacks that have prefix sites."""
    out, within = [], frozenset(n for n, at in modules.items() if isinstance(at, Further))
    for name, module, stack, mine, at in _moving(model, names, modules):
        before: Any = getattr(module, "offset", 0)
        entries = (module.num_embeddings, before) if isinstance(module, nn.Embedding) else None
        aside = frozenset(n for n, a in modules.items() if isinstance(a, Aside) and a.joins in mine)
        hook = Moved(name, stack, mine, current, at, within, aside, entries)
        out.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        if entries is not None:
            out.append(module.register_forward_hook(hook.by_row))
    return out


def _moving(
    model: nn.Module, names: Mapping[str, nn.Module], modules: Mapping[str, Physical]
) -> Iterator[tuple[str, Any, str, list[str], int]]:
    """What is given positions: (name, module, its stack, the prefix sites behind which they move, see `_given`)."""
    tower, two = towers(model), paired(model)
    sites = [(n, tower(n), _stack(n)) for n, at in modules.items() if at.kind == "prefix"]
    for name, module in names.items():
        if not sites or (at := _given(name, module)) is None:
            continue
        own, stack = tower(name), _stack(name) if two else ""
        if mine := [n for n, of, beside in sites if of == own and (not stack or beside == stack)]:
            yield name, module, stack, mine, at


def longest(
    model: nn.Module, names: Mapping[str, nn.Module], modules: Mapping[str, Physical], tenant: Tenant
) -> int | None:
    """The tokens of the longest row that the tables of positions hold behind a tenant's; None where nothing limits it,
    or the model is an encoder-decoder, whose rows are two."""
    ahead = 0 if paired(model) else places(tenant, "")
    if not ahead:
        return None
    within = [at.room for n, at in modules.items() if isinstance(at, Further) and n in tenant.table]
    tables = [m for _, m, *_ in _moving(model, names, modules) if isinstance(m, nn.Embedding)]
    room = [*map(entries, tables), *(n for n in within if n is not None)]
    return min(room) - ahead if room else None


def follows(names: Mapping[str, nn.Module], site: str) -> bool:
    """Whether tokens behind keys at this site of an encoder-decoder are moved on."""
    return any(_stack(n) in (_stack(site), "") and _given(n, m) is not None for n, m in names.items())


def _stack(name: str) -> str:
    return next((p for p in name.split(".") if p in ("encoder", "decoder")), "")


def _given(name: str, module: nn.Module) -> int | None:
    """Where a module is given positions; None where it is not."""
    kind = plain_class(module)
    if isinstance(module, nn.Embedding) and kind.forward is nn.Embedding.forward:
        return 0 if positional(name, module) else None
    if isinstance(module, nn.Embedding) or re.search(r"(?i)rotary|rope", kind.__name__):
        asked = parameters(module)
        return asked.index("position_ids") if "position_ids" in asked else None
    return None
