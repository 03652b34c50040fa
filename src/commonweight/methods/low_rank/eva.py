"""EVA: LoRA whose A begins as the directions in which a layer's input varies most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...core import CommonweightError, Plan, Site, config, option
from ..registry import method
from ..shown import Statistics
from .lora import LoRA
from .lora import plan as lora_plan
from .pruned import widest


@config
class EVA:
    rank: int = option(8, "rank r of a site's update in the mean", ge=1)
    rho: float = option(2.0, "a site has at most rho r directions; 1: all have r", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: from the inputs of rows; random: as LoRA; given: what a start from rows becomes"
    )
    ranks: tuple[tuple[str, int], ...] = option((), "(site, rank) pairs of a tenant that has begun")

    def check(self) -> str | None:
        if any(r < 0 for _, r in self.ranks):
            return "a rank in ranks is below 0"
        return None


def begin(config: EVA, sites: Sequence[Site], seen: Statistics) -> tuple[EVA, dict[str, Tensor]]:
    """The directions of all sites compete by the share of their input's variance that they explain.

    A of a site: the first eigenvectors of X^T X, rows, as many as it won; the scale of each stays alpha / r.
    """
    most = int(config.rho * config.rank)
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for s in sites:
        values, vectors = torch.linalg.eigh(seen[s.name].double())
        values, vectors = values.flip(0)[:most].clamp(min=0), vectors.flip(1)[:, :most]
        total = seen[s.name].double().diagonal().sum()
        if not total > 0:
            raise CommonweightError(f"eva: {s.name}: its input is zero in all rows; leave the site out")
        parts[s.name] = values / total, vectors.T.float().contiguous()
    budget = sum(min(config.rank, len(share)) for share, _ in parts.values())
    flat = torch.cat([share for share, _ in parts.values()])
    won = torch.zeros(len(flat), dtype=torch.bool)
    won[flat.sort(descending=True, stable=True).indices[:budget]] = True
    counts = [int(w.sum()) for w in won.split([len(share) for share, _ in parts.values()])]
    ranks = tuple((name, r) for name, r in zip(parts, counts))
    values = {f"{n}.A": parts[n][1][:r] for n, r in ranks if r}
    return replace(config, start="given", ranks=ranks), values


@method(
    "eva",
    EVA,
    paper="Parameter Efficient Fine-tuning via Explained Variance Adaptation, arXiv 2410.07170",
    formula="sum over sites of r_i (d_in + d_out), the mean of r_i being r",
    kinds=("linear",),
    lr=1e-3,
    wants=lambda config: "inputs" if config.start == "rows" else "",
    begin=begin,
    ends=lambda config, sites: widest(config, sites, config.rank, int(config.rho * config.rank)),
)
def plan(sites: Sequence[Site], config: EVA) -> Plan:
    """h = W0 x + (alpha / r) B A x; B zero, the rows of A orthonormal.

    Linear in: A and B, each alone. Source: arXiv 2410.07170, section 3. Differs: the exact eigenvectors of all rows'
    X^T X in place of an incremental SVD; the scale of all sites stays alpha / r, whatever they won.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    ranks = dict(config.ranks)
    mine = [s for s in sites if ranks.get(s.name, config.rank)]
    pairs = tuple((s.name, ranks[s.name]) for s in mine if s.name in ranks)
    alphas = tuple((n, alpha * r / config.rank) for n, r in pairs)
    lora = LoRA(
        rank=config.rank,
        alpha=alpha,
        dropout=config.dropout,
        ranks=pairs,
        alphas=alphas,
        rslora=False,
        bias=False,
        invocation=(),
    )
    return lora_plan(mine, lora)
