"""Updates that grow while they train, in tensors that have room: how many directions there are, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...core import Plan, Rng, Site, kaiming
from ...core.schedule import Edit, Pools
from .lora import LoRA, pick
from .lora import plan as lora_plan
from .pruned import wrong_ranks


def wrong_growth(config: Any) -> str | None:
    """What is wrong with start, target and room, shares of the steps, and ranks."""
    if not config.start <= config.target <= config.room:
        return f"start={config.start}, target={config.target}, most={config.room}: they must not fall"
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


def roomy(sites: Sequence[Site], config: Any, room: int, alpha: float) -> Plan:
    """A LoRA with room for so many ranks at each site, or the ranks that config.ranks says, and the scale alpha."""
    sizes = {s.name: int(pick(config.ranks, s.name, room)) for s in sites}
    mine = [s for s in sites if sizes[s.name]]
    if not mine:
        return Plan({}, ())
    pairs = tuple((s.name, sizes[s.name]) for s in mine)
    alphas = tuple((n, alpha * r) for n, r in pairs)
    lora = LoRA(
        rank=room, alpha=None, dropout=config.dropout, ranks=pairs, alphas=alphas, rslora=False, bias=False,
        invocation=(),
    )  # fmt: skip
    return lora_plan(mine, lora)


def masks(sites: Sequence[str], pools: Pools, gates: Tensor) -> dict[str, Tensor]:
    """Rows of A and columns of B that are there, by gates (sites, room) of 0 and 1."""
    out = {}
    for s, g in zip(sites, gates):
        A, B = pools[f"{s}.A"], pools[f"{s}.B"]
        out |= {f"{s}.A": g.to(A)[:, None].expand_as(A), f"{s}.B": g.to(B).expand_as(B)}
    return out


def grow(sites: Sequence[str], pools: Pools, gates: Tensor, new: Tensor, seed: int, name: str) -> Edit:
    """The gates from now on; of those that are new A is drawn, and B zero, so that no answer changes."""
    values: dict[str, Tensor] = {}
    for s, added in zip(sites, new):
        A, B = pools[f"{s}.A"], pools[f"{s}.B"]
        if added.any():
            drawn = kaiming(A.shape[1])(tuple(A.shape), Rng(seed, f"{s}.A/{name}"), None).to(A)  # type: ignore[arg-type]
            fresh = added.bool().to(A.device)
            values[f"{s}.A"] = torch.where(fresh[:, None], drawn, A)
            values[f"{s}.B"] = torch.where(fresh, torch.zeros_like(B), B)
    moments = masks(sites, pools, gates * (1 - new))
    return Edit(values=values, masks=masks(sites, pools, gates), moments=moments)


def left(config: Any, pools: Mapping[str, Tensor], rank: int) -> tuple[Any, dict[str, Tensor]]:
    """The ranks whose A is not zero, and a config that says how many each site has. rank: where no pools are given."""
    out, ranks = {}, []
    for n, A in pools.items():
        if n.endswith(".A"):
            s, at = n.removesuffix(".A"), A.detach().any(1).nonzero()[:, 0]
            out |= {n: A.detach()[at], f"{s}.B": pools[f"{s}.B"].detach()[:, at]}
            ranks.append((s, len(at)))
    return replace(config, ranks=tuple(ranks) or (*config.ranks, ("*", rank))), out
