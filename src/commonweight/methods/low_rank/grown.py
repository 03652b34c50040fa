"""Updates whose ranks grow or move as they train: how many directions there are, and the plan that has just these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...core import Init, Plan, Rng, Site, kaiming
from ...core.schedule import Edit, Places, Pools, carried
from .lora import LoRA, pick
from .lora import plan as lora_plan
from .pruned import left_with, wrong_ranks

ALONG = {"A": (0,), "B": (1,), "d": (0,), "C": (0, 1)}  # dimensions of a site's pools along which its directions lie

ROOM = {"most": "a site is given directions as it wants them, not room for them; leave it out"}


def wrong_growth(config: Any) -> str | None:
    """What is wrong with start and target, shares of the steps, and ranks."""
    if config.start > config.target:
        return f"start={config.start} is more than target={config.target}"
    if config.begin + config.end > 1:
        return f"begin={config.begin} and end={config.end} are more than all steps"
    return wrong_ranks(config.ranks)


def over(rank: int) -> float:
    """1 / (r + 1e-5), as the official codes of IncreLoRA and TriAdaptLoRA divide."""
    return 1 / (rank + 1e-5)


def wanted(step: int, first: int, last: int, start: int, target: int) -> int:
    """Directions of all sites together: `start` until the step `first`, then evenly more, `target` from `last` on."""
    if step >= last:
        return target
    if step <= first:
        return start
    return start + math.floor((target - start) * (step - first) / (last - first))


def size(config: Any, site: Site, rank: int) -> int:
    """What config.ranks says of a site, else `rank`, but no more than a matrix of its shape can have."""
    return int(pick(config.ranks, site.name, min(rank, site.inp, site.out)))


def of_lora(sites: Sequence[Site], config: Any, rank: int, scale: float) -> Plan:
    """A LoRA of these ranks, or of those that config.ranks says; the scale is the same whatever the rank."""
    sizes = {s.name: size(config, s, rank) for s in sites}
    mine = [s for s in sites if sizes[s.name]]
    if not mine:
        return Plan({}, ())
    pairs = tuple((s.name, sizes[s.name]) for s in mine)
    alphas = tuple((n, scale * r) for n, r in pairs)
    lora = LoRA(
        rank=rank, alpha=None, dropout=config.dropout, ranks=pairs, alphas=alphas, rslora=False, bias=False,
        invocation=(),
    )  # fmt: skip
    return lora_plan(mine, lora)


def ranks_of(sites: Sequence[str], pools: Pools) -> Tensor:
    """Directions of each site, 0 where it has none any more."""
    return torch.tensor([len(pools[f"{s}.A"]) if f"{s}.A" in pools else 0 for s in sites])


def limits(sites: Sequence[str], pools: Pools) -> Tensor:
    """The rank that a site's matrix can have."""
    there = [(pools.get(f"{s}.A"), pools.get(f"{s}.B")) for s in sites]
    return torch.tensor([min(A.shape[1], B.shape[0]) if A is not None and B is not None else 0 for A, B in there])


def first(n: int, rank: int) -> Tensor:
    """Places of a site's directions: the first ones of n, and new ones behind them."""
    at = torch.arange(rank)
    return torch.where(at < n, at, -1)


def uniform(shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
    """Rows of A, as those of a LoRA of any rank."""
    return kaiming(shape[1])(shape, rng, base)


def along(pools: Pools, at: Mapping[str, Tensor]) -> dict[str, Places]:
    """The places of all numbers of these sites' pools, by those of their directions; a site without any has no pool."""
    found = [(f"{s}.{k}", t, dims) for s, t in at.items() if len(t) for k, dims in ALONG.items()]
    return {n: tuple(t if i in dims else None for i in range(pools[n].dim())) for n, t, dims in found if n in pools}


def resized(
    config: Any, sites: Sequence[str], pools: Pools, at: Mapping[str, Tensor], new: Mapping[str, Init], seed: int,
    name: str,
) -> Edit:  # fmt: skip
    """The plan in which these sites have these directions, by their old places, -1 for new ones; others have theirs.

    new: by the last part of a pool's name ("A"), how new numbers are drawn, from seed and name; others are 0.
    """
    ranks = dict(zip(sites, ranks_of(sites, pools).tolist()))
    at = {s: t for s, t in at.items() if not torch.equal(t, torch.arange(ranks[s]))}
    if not at:
        return Edit()
    ranks |= {s: len(t) for s, t in at.items()}
    places, values = along(pools, at), {}
    for n, place in places.items():
        k = n.rpartition(".")[2]
        if k in new and any(t is not None and bool((t < 0).any()) for t in place):
            shape = tuple(d if t is None else len(t) for t, d in zip(place, pools[n].shape))
            drawn = new[k](shape, Rng(seed, f"{n}/{name}"), None)  # type: ignore[arg-type]
            values[n] = carried(pools[n], place, drawn)
    return Edit(values=values, places=places, config=replace(config, ranks=tuple(ranks.items())))


def there(config: Any, pools: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The pools, and a config that says how many directions each site has."""
    if not pools:
        return config, {}
    sites = [n.removesuffix(".A") for n in pools if n.endswith(".A")]
    return left_with(config, dict(zip(sites, ranks_of(sites, pools).tolist()))), dict(pools)
