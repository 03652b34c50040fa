"""Tokens behind a prefix stand so many positions further on, where the model turns positions into numbers.

Both ways are followed: tables of positions (BERT, GPT-2) and rotations (Llama). Their modules are given the positions,
whoever made them, so that nothing needs to be known of how a model counts.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current
from .route import Route
from .sites import Physical, plain_class, towers
from .tenant import Tenant

_TABLE = re.compile(r"(wpe|pos(ition)?s?_embed\w*|embed_positions?)$")


class Moved:
    """Before a module that is given positions. at: where among its arguments they are."""

    def __init__(self, sites: list[str], current: Current, at: int, entries: int | None):
        self.sites, self.current, self.at, self.entries = sites, current, at, entries

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        route = self.current.route
        if route is None or self.current.thread.recording is not None or (by := self.by(route)) is None:
            return None
        given = args[self.at] if len(args) > self.at else kwargs.get("position_ids")
        if not isinstance(given, Tensor) or given.is_floating_point():
            return None
        moved = given + self.fitting(by, route, given)
        if self.entries is not None and not torch.compiler.is_compiling() and int(moved.max()) >= self.entries:
            raise CommonweightError(
                f"a prefix moves the tokens behind it to position {int(moved.max())}, and the model's table of "
                f"positions ends at {self.entries - 1}; give shorter rows, or a tenant with fewer tokens ahead"
            )
        if len(args) > self.at:
            return (*args[: self.at], moved, *args[self.at + 1 :]), kwargs
        return args, {**kwargs, "position_ids": moved}

    def by(self, route: Route) -> int | list[int] | None:
        """By how many positions: of all rows, or of each place of the route; None where nobody has a prefix."""
        if "moved by" not in route.kept:
            if route.single is not None:
                route.kept["moved by"] = places(route.single) or None
            else:
                out = [0] * route.length
                for tenant, mine in route.groups:
                    n = 0 if tenant is None else places(tenant)
                    for p in mine:
                        out[p] = n
                route.kept["moved by"] = out if any(out) else None
        return route.kept["moved by"]

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


@torch.no_grad()
def places(tenant: Tenant) -> int:
    """By how many positions a tenant moves its tokens: the most that stands ahead of them in a layer."""
    if not any(hasattr(u.bind, "places") for u in tenant.plan.uses):
        return 0
    each = (
        sum(e.bind.places(**e.slots(None)) for e in entries if hasattr(e.bind, "places"))
        for entries in tenant.table.values()
    )
    return max(each, default=0)


def install(model: nn.Module, names: dict[str, nn.Module], modules: dict[str, Physical], current: Current) -> list[Any]:
    """Hooks on what is given positions, in the towers that have prefix sites."""
    sites, tower = [n for n, at in modules.items() if at.kind == "prefix"], towers(model)
    mine, out = {tower(n) for n in sites}, []
    for name, module in names.items():
        if tower(name) not in mine or (at := _given(name, module)) is None:
            continue
        entries = module.num_embeddings if isinstance(module, nn.Embedding) else None
        out.append(module.register_forward_pre_hook(Moved(sites, current, at, entries), with_kwargs=True))
    return out


def _given(name: str, module: nn.Module) -> int | None:
    """Where a module is given positions; None where it is not."""
    kind = plain_class(module)
    if isinstance(module, nn.Embedding) and kind.forward is nn.Embedding.forward:
        return 0 if _TABLE.search(name.rpartition(".")[2]) else None
    if isinstance(module, nn.Embedding) or re.search(r"(?i)rotary|rope", kind.__name__):
        asked = list(inspect.signature(inspect.unwrap(kind.forward)).parameters)[1:]
        return asked.index("position_ids") if "position_ids" in asked else None
    return None
