"""MoS, mixture of shards: every A and B is laid together from shards of pools that all layers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...address import WHOLE, Gather
from ...bind import LowRank
from ...core import (
    ZEROS,
    CommonweightError,
    Normal,
    Plan,
    Pool,
    Read,
    Rng,
    Site,
    Source,
    Use,
    config,
    kaiming,
    option,
    serial,
)
from ..registry import families, method
from ..widths import divides


@config
class MoS:
    rank: int = option(8, "rank r of every site's update", ge=1)
    budget: int = option(2, "equivalent rank e: the parameters of a LoRA of rank e", ge=1)
    private: int = option(1, "of the e, how many vectors a site keeps to itself", ge=0)
    shards: int = option(4, "shards per vector; must divide every width", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    core: Literal["none", "scale", "matrix"] = option(
        "none", "numbers of a site's own between A and B: none, d (r,) or M (r, r); what a tenant of a common owns"
    )

    def check(self) -> str | None:
        if self.private > self.budget:
            return f"private={self.private} is more than the whole budget={self.budget}"
        if self.private > self.rank:
            return f"private={self.private} is more than rank={self.rank}"
        if self.private == self.budget and self.rank > self.private:
            return f"private={self.private} leaves no public shards for rank={self.rank}; lower private or raise budget"
        return None


@serial
@dataclass(frozen=True)
class ShardIndex:
    """Which shards one site reads: its own private ones, then `public` drawn without replacement.

    The pool holds `shared` public shards, then `own` private shards for each site in turn.
    """

    site: int
    shared: int
    own: int

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        drawn = rng.permutation(self.shared)
        need = shape[0] - self.own
        while len(drawn) < need:
            drawn = drawn.new_tensor([*drawn.tolist(), *rng.permutation(self.shared).tolist()])
        mine = drawn.new_tensor(range(self.own)) + self.shared + self.site * self.own
        return mine.new_tensor([*mine.tolist(), *drawn[:need].tolist()])


@method(
    "mos",
    MoS,
    paper="MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards, arXiv 2410.00938",
    formula="sum over sites of e (d_in + d_out), whatever the rank",
    unfit=divides("shards"),
    lr=2e-3,
    common="the shards; its own: which of them it reads, by its seed, and the core",
    size=("budget", "private"),
)
def plan(sites: Sequence[Site], config: MoS) -> Plan:
    """A_k = concat(pool_A[I_A^k]), B_k = concat(pool_B[I_B^k]); update (alpha / r) B_k A_k.

    Shapes: pool_A (L e l, d_in / l), I_A^k (r l,) -> A (r, d_in); pool_B likewise from d_out -> B^T (r, d_out).
    One pool per projection type across all L layers. Subset selection: I draws r of the L (e - p) public vectors;
    pair dissociation: I_A and I_B are drawn apart; vector sharding: l shards a vector; privatisation: p of the
    e vectors of a site are read by it alone. Linear in: each pool. Source: arXiv 2410.00938, sections 3.2 to 3.4.
    Differs: the indices are redrawn from (seed, name) instead of stored; when r exceeds the public vectors,
    whole rounds are drawn again. The core is ours: B_k diag(d) A_k or B_k M A_k, where pool_B starts random and the
    core at zero. Raises: when l does not divide a width.
    """
    pools, uses = {}, []
    e, p, l, r = config.budget, config.private, config.shards, config.rank
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    first = ZEROS if config.core == "none" else Normal(1 / math.sqrt(r))
    between, core = {"none": ("", ()), "scale": ("d", (r,)), "matrix": ("M", (r, r))}[config.core]
    for family, group in families(sites).items():
        n = len(group)
        for slot, width, init in (("A", group[0].inp, kaiming(group[0].inp)), ("B", group[0].out, first)):
            if width % l:
                choose = [d for d in range(2, 65) if width % d == 0][:4]
                raise CommonweightError(
                    f"mos: {group[0].name}: width {width} of {slot} is not a multiple of shards={l}; "
                    f"choose shards from {[1, *choose]}, or exclude the site"
                )
            pools[f"{family}.{slot}"] = Pool((n * e * l, width // l), init, scope="shared")
            for i, s in enumerate(group):
                index = ShardIndex(i, n * (e - p) * l, p * l)
                pools[f"{s.name}.{slot}.index"] = Pool((r * l,), index, train=False, save=False, dtype="int64")
        for s in group:
            reads = {
                slot: Read(Gather((r, width), slot == "B"), (f"{family}.{slot}", f"{s.name}.{slot}.index"))
                for slot, width in (("A", s.inp), ("B", s.out))
            }
            if core:
                pools[f"{s.name}.core"] = Pool(core, ZEROS)
                reads[between] = Read(WHOLE, (f"{s.name}.core",))
            uses.append(Use(s.name, LowRank(scale, config.dropout), reads))
    return Plan(pools, tuple(uses))
