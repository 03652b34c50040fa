"""DSEE's second stage: what of the base a tenant leaves out, by the size of its own update or of the weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Rng, Site
from ...core.bits import packed
from ...core.schedule import Edit, Moment, Pools, State, last_of
from ..blocks import by_block, heads_at

UPDATED = "query", "value"


@dataclass(frozen=True)
class SecondStage:
    """After the last step of the first stage, once. Numbers: of all updated weights together the smallest share goes by
    the update's size, and of all others by the weight's own. Heads: of each attention those with the smallest sums.

    masked: the sites with a mask of numbers. heads: (query, value, output layer, heads) of each attention. seed: of
    what is drawn.
    """

    config: Any
    scale: float
    masked: tuple[str, ...]
    heads: tuple[tuple[str, str, str, int], ...]
    seed: int = 0

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {}, Edit()

    def settled(self, step: int, steps: int) -> bool:
        return step > last_of(self.config.first, steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        if at.step != last_of(self.config.first, at.steps):
            return state, Edit()
        return state, Edit(values=self._heads(at) if self.heads else self._numbers(at))

    def _numbers(self, at: Moment) -> dict[str, Tensor]:
        updated = [n for n in self.masked if f"{n}.A" in at.pools]
        others = [n for n in self.masked if n not in updated]
        masks = above({n: self.size(at, n) for n in updated}, self.config.prune)
        masks |= above({n: at.weight(n).abs() for n in others}, self.config.prune)
        return {f"{n}.bits": packed(m) for n, m in masks.items()}

    def size(self, at: Moment, site: str) -> Tensor:
        """Of each number of an updated weight, by `score`: |update|, |weight|, |weight + update|, 1 / |update|, or the
        size of a normal number. An update of 0 is none: by the fourth it stays to the last."""
        low, sparse = change(at.pools, site)
        if self.config.score == "random":
            return self.drawn(site, tuple(low.shape)).abs().to(low.device)
        if self.config.score == "large":
            return 1 / (self.scale * (low + sparse)).abs()
        if self.config.score == "weight":
            return at.weight(site).abs()
        if self.config.score == "update":
            return (self.scale * (low + sparse)).abs()
        part = low if self.config.compat == "official" else self.scale * low
        return (at.weight(site) + part + self.scale * sparse).abs()

    def drawn(self, site: str, shape: tuple[int, ...]) -> Tensor:
        return Rng(self.seed, f"{site}/second stage").normal(shape)

    def _heads(self, at: Moment) -> dict[str, Tensor]:
        out = {}
        for q, v, o, n in self.heads:
            drawn = self.config.score == "random"
            sums = self.drawn(o, (n,)) if drawn else torch.zeros(n)
            for site in () if drawn else (q, v):
                if self.config.score != "weight":
                    sums += torch.stack(change(at.pools, site)).sum(0).abs().reshape(n, -1).sum(1).cpu()
                if self.config.score != "update":
                    sums += at.weight(site).abs().reshape(n, -1).sum(1).cpu()
            mask = torch.ones(n)
            mask[sums.argsort(stable=True)[: self.config.prune_heads]] = 0
            out[f"{o}.heads"] = mask
        return out


def change(pools: Pools, site: str) -> tuple[Tensor, Tensor]:
    """(B A, S) of a site, without the scale: (d_out, d_in) each."""
    A, B, S, places = (pools[f"{site}.{k}"] for k in ("A", "B", "S", "places"))
    low = B @ A
    return low, torch.zeros_like(low).view(-1).index_add(0, places, S).view_as(low)


def above(sizes: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """All but the smallest round(share n) of all n numbers together; of equal ones the first go. Cost: a sort."""
    if not sizes:
        return {}
    flat = torch.cat([s.flatten() for s in sizes.values()])
    left = torch.ones_like(flat, dtype=torch.bool)
    left[flat.argsort(stable=True)[: round(share * len(flat))]] = False
    parts = left.split([s.numel() for s in sizes.values()])
    return {n: m.view_as(s) for (n, s), m in zip(sizes.items(), parts)}


def attentions(sites: Sequence[Site], config: Any) -> tuple[tuple[str, str, str, int], ...]:
    """(query, value, output layer, number of heads) of each attention among the sites.

    Raises: CommonweightError for heads that are not known, that share keys and values, or are too few."""
    out, cut = [], config.prune_heads
    for block in by_block(sites):
        mine = [[s for s in block if s.role == r] for r in (*UPDATED, "attn_out")]
        for q, v, o in zip(*mine):
            if not (n := heads_at(config, o)):
                raise CommonweightError(
                    f"{o.name}: nothing says how many heads made its input of {o.inp} numbers; give heads"
                )
            if q.out != v.out or q.out != o.inp:
                raise CommonweightError(
                    f"{o.name}: its heads share keys and values ({q.out} numbers of queries, {v.out} of values), so "
                    "that a head cannot be left out by itself; take prune"
                )
            if cut >= n:
                raise CommonweightError(f"{o.name}: prune_heads={cut} of {n} heads; wanted less")
            out.append((q.name, v.name, o.name, n))
    if not out:
        raise CommonweightError("dsee: prune_heads wants queries, values and the layer behind an attention's heads")
    return tuple(out)
