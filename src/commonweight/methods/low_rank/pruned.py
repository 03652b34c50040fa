"""Updates B diag(d) A whose directions a schedule drops or adds: where d is zero, nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank
from ...core import Init, Plan, Pool, Read, Site, Use
from .lora import pick

Ranks = Sequence[tuple[str, int]]


def wrong_ranks(ranks: Ranks) -> str | None:
    found = next(((p, r) for p, r in ranks if r < 0), None)
    return found and f"ranks gives {found[0]!r} the value {found[1]}; it must be >= 0"


def gated(
    sites: Sequence[Site], config: Any, scale: float, A: Mapping[str, Init], B: Init, d: Init
) -> Plan:  # fmt: skip
    """y += scale B diag(d) A x with A (r, d_in), B (d_out, r), d (r,). A: by site. config.rank, config.ranks: r."""
    pools, uses = {}, []
    for s in sites:
        r = int(pick(config.ranks, s.name, config.rank))
        if not r:
            continue
        pools[f"{s.name}.A"] = Pool((r, s.inp), A[s.name])
        pools[f"{s.name}.B"] = Pool((s.out, r), B)
        pools[f"{s.name}.d"] = Pool((r,), d)
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "ABd"}
        uses.append(Use(s.name, LowRank(scale, config.dropout), reads))
    return Plan(pools, tuple(uses))


def widest(config: Any, sites: Sequence[Site], mean: int, most: int | None = None) -> Any:
    """Of sites with so many directions in the mean, the ranks of most numbers: all at the widest sites, and at one of
    them as many as its matrix can have, or `most`. A config that has ranks keeps them."""
    if config.ranks:
        return config
    left, ranks = mean * len(sites), {}
    for s in sorted(sites, key=lambda s: -(s.out + s.inp)):
        ranks[s.name] = min(left, s.out, s.inp, left if most is None else most)
        left -= ranks[s.name]
    return replace(config, ranks=tuple(ranks.items()))


def kept(config: Any, pools: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The directions with a d that is not zero, and a config that says how many each site has."""
    gates = {n.removesuffix(".d"): p.detach().nonzero()[:, 0] for n, p in pools.items() if n.endswith(".d")}
    if not gates:
        return config, {}
    out = {}
    for site, at in gates.items():
        out |= {f"{site}.A": pools[f"{site}.A"].detach()[at], f"{site}.B": pools[f"{site}.B"].detach()[:, at]}
        out[f"{site}.d"] = pools[f"{site}.d"].detach()[at]
    return left_with(config, {site: len(at) for site, at in gates.items()}), out


def left_with(config: Any, ranks: Mapping[str, int]) -> Any:
    """A config of these sites' ranks. Others that had none, and so have no pools that would tell, still have none."""
    return replace(config, ranks=(*ranks.items(), *((p, r) for p, r in config.ranks if not r and p not in ranks)))


def far_from_orthonormal(plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    """The mean over matrices of |A A^T - I| and |B^T B - I| (Frobenius norms)."""
    found = []
    for n, p in pools.items():
        mine = n.rpartition(".")[2]
        if mine not in ("A", "B") or n not in plan.pools or not p.requires_grad:
            continue
        rows = p if mine == "A" else p.mT
        eye = torch.eye(len(rows), dtype=p.dtype, device=p.device)
        found.append(torch.linalg.matrix_norm(rows @ rows.mT - eye))
    return torch.stack(found).mean() if found else torch.zeros(())
