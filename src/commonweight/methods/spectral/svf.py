"""SVF, of Transformer-squared: one number for every singular value of every weight; a tenant is an expert vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank, active
from ...core import (
    ZEROS,
    Base,
    BaseWeight,
    CommonweightError,
    Plan,
    Pool,
    Read,
    Rng,
    Site,
    Source,
    Use,
    config,
    counted,
    option,
    serial,
)
from ..low_rank.lora_xs import fits
from ..registry import method
from ..widths import ranked


@config
class SVF:
    rank: int | None = option(None, "how many singular values are scaled, the largest first; none: all", ge=1)
    mask: Literal["free", "sigmoid"] = option(
        "free", "z = 1 + p, the paper's formula; or a sigmoid of p that keeps the sum of singular values: the code's"
    )


@serial
@dataclass(frozen=True)
class Singular:
    """The largest singular values of a site's weight in bfloat16, as many as the pool has."""

    site: str
    derived: ClassVar[bool] = True

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return base.svd(self.site, True)[1][: shape[0]].clone()


@serial
@dataclass(frozen=True)
class KeptSum:
    """w' = w + U diag(z - 1) diag(s) V^T with z = m sum(s) / sum(s m), m = sigmoid(p): sum(s z) = sum(s).

    Shapes: A = diag(s) V^T (r, d_in), B = U (d_out, r), s (r,), p (r,). Linear in: nothing of a tenant's.
    Cost: as LowRank. A p of equal numbers is the base.
    """

    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True  # z is close to 1

    def slots(self, A: Tensor, B: Tensor, s: Tensor, p: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        m = torch.sigmoid(p)
        z = m * (s.sum(-1, keepdim=True) / (s * m).sum(-1, keepdim=True))
        return {"A": A.to(dtype), "B": B.to(dtype), "d": (z - 1).to(dtype)}

    def factors(self, **slots: Tensor) -> tuple[Tensor, Tensor]:
        return LowRank().factors(**self.slots(**slots, dtype=slots["p"].dtype))

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return LowRank().weight(w, **self.slots(**slots, dtype=w.dtype))

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank().output(x, y, base, **self.slots(**slots, dtype=active(x, y)))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank().grouped(x, y, base, **self.slots(**slots, dtype=active(x, y)))


@method(
    "svf",
    SVF,
    paper="Transformer-Squared: Self-adaptive LLMs, arXiv 2501.06252",
    formula="min(d_in, d_out) per site, or rank",
    unfit=ranked(),
    lr=3e-2,
)
def plan(sites: Sequence[Site], config: SVF) -> Plan:
    """W' = U diag(s z) V^T, W = U diag(s) V^T: only z is trained, one vector per site, from z = 1. The pool is z - 1.

    Shapes: U (d_out, r), s (r,), V^T (r, d_in), z (r,), r = min(d_in, d_out). Linear in: z (mask="free").
    Cost: run as x V diag(s (z - 1)) U^T beside the frozen layer, T r (d_in + d_out) products: at full rank twice those
    of the layer itself (a square weight), and U and V^T take twice its memory, once for all tenants of a host.
    `Host.merged` gives a model without that cost. One SVD per site for the first tenant; a file holds z alone.
    Source: arXiv 2501.06252, section 3.2, where SVF is W' = U diag(s z) V^T (its objective: equation 1), and a copy of
    the official code (mask="sigmoid"; the repository itself was not available). Differs: trained on any loss, not by
    REINFORCE with a KL term alone; mask="free" is the formula of the paper, where the code draws p around 0.1 and
    rescales; that code adapts the feed-forward matrices alone; the SVD is of W in bfloat16, so that a file fits copies
    of the base in both precisions; rank is ours.
    Raises: for a rank above the weight's.
    """
    pools, uses = {}, []
    for site in sites:
        r = min(site.out, site.inp) if config.rank is None else config.rank
        fits("svf", site, r)
        kept: dict[str, Any] = {"train": False, "save": False}
        n = site.name
        pools[f"{n}.V"] = Pool((r, site.inp), BaseWeight(n, "V", 1.0, rounded=True), **kept)
        pools[f"{n}.U"] = Pool((site.out, r), BaseWeight(n, "U", 0.0, rounded=True), **kept)
        pools[f"{n}.z"] = Pool((r,), ZEROS)
        reads = {"A": f"{n}.V", "B": f"{n}.U", "d" if config.mask == "free" else "p": f"{n}.z"}
        if config.mask == "sigmoid":
            pools[f"{n}.s"] = Pool((r,), Singular(n), **kept)
            reads["s"] = f"{n}.s"
        bind = LowRank() if config.mask == "free" else KeptSum()
        uses.append(Use(n, bind, {slot: Read(WHOLE, (pool,)) for slot, pool in reads.items()}))
    return Plan(pools, tuple(uses))


def mix(experts: Sequence[Mapping[str, Tensor]], alpha: Sequence[float]) -> dict[str, Tensor]:
    """z' = sum_k alpha_k z_k: the expert vectors of several tenants as one; pools of svf tenants with mask="free".

    experts: for each, pool name -> z - 1 (`tenant.pools` will do: other pools are left out); alpha: one number each,
    the base included where they do not sum to 1: z' is then the sum as it is, as in the paper.
    Linear in: the experts, and alpha. Source: arXiv 2501.06252, section 3.2, few-shot adaptation; the paper finds alpha
    by the cross-entropy method. Its code mixes p, before the sigmoid, and then takes the mixture for z as it is.
    Raises: CommonweightError when there is not one alpha for each expert, or they have different sites or ranks.
    """
    if not experts or len(experts) != len(alpha):
        raise CommonweightError(
            f"svf.mix: {counted(len(experts), 'expert')} and {len(alpha)} alphas; give one alpha to each"
        )
    each = [{n: t.detach() for n, t in pools.items() if n.endswith(".z")} for pools in experts]
    shapes = [{n: tuple(t.shape) for n, t in pools.items()} for pools in each]
    if not shapes[0] or any(s != shapes[0] for s in shapes):
        raise CommonweightError("svf.mix: the experts have different sites or ranks; mix tenants of one plan")
    return {n: torch.stack([a * (1 + e[n]) for a, e in zip(alpha, each)]).sum(0) - 1 for n in shapes[0]}
