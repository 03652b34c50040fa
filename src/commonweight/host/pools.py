"""A tenant's tensors by name, small where thousands of tenants of one common differ in a few numbers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..core import Plan, Pool

Places = Mapping[str, tuple[int, int]]  # name -> where its numbers begin in a flat tensor, and where they end


class Packed(Mapping[str, Tensor]):
    """held: tensors by name. flat: the numbers of all other pools, one after the other; such a pool is a view, made
    when somebody asks for it. specs, at: one for all tenants of a kind.

    A tensor is some 700 bytes beside its numbers, and a tenant of MoS reads two small ones at each layer.
    """

    __slots__ = ("at", "flat", "held", "specs")

    def __init__(self, held: dict[str, Tensor], flat: Tensor, specs: Mapping[str, Pool], at: Places):
        self.held, self.flat, self.specs, self.at = held, flat, specs, at

    def __getitem__(self, name: str) -> Tensor:
        found = self.held.get(name)
        if found is not None:
            return found
        first, end = self.at[name]
        return self.flat[first:end].view(self.specs[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs


def drawn(plan: Plan) -> list[str]:
    """Pools of a tenant's own that are whole numbers which nobody trains and no file holds: which rows it reads."""
    return [n for n, p in plan.pools.items() if p.dtype == "int64" and p.scope == "tenant" and not (p.train or p.save)]


def packed(pools: Mapping[str, Tensor], plan: Plan, names: list[str], like: Mapping[str, Tensor] | None) -> Packed:
    """The same tensors, those of `names` in one. like: the pools of a tenant with an equal plan."""
    if isinstance(like, Packed) and like.specs is plan.pools:
        at: Places = like.at
    else:
        at, end = {}, 0
        for name in names:
            at[name] = end, end + plan.pools[name].numel
            end = at[name][1]
    flat = torch.cat([pools[n].reshape(-1) for n in at])
    return Packed({n: t for n, t in pools.items() if n not in at}, flat, plan.pools, at)


def stored(pools: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that memory holds for these pools, each once."""
    return [*pools.held.values(), pools.flat] if isinstance(pools, Packed) else [*pools.values()]
