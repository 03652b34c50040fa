"""PiSSA: train the principal singular triplets of every weight, leave the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...bind import Anchored
from ...core import BaseWeight, CommonweightError, Plan, Rng, Site, Source, Use, config, option, serial
from ..registry import method
from ..widths import ranked
from .anchored import twins


@config
class PiSSA:
    rank: int = option(8, "how many principal singular triplets are trained", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)


@serial
@dataclass(frozen=True)
class Principal:
    """The r largest singular triplets of `site`, halved between "U" (out, r) and "V" (r, inp): U V = W_r / scale."""

    derived = True
    checked = False  # turned or mixed singular vectors, of a base in bfloat16 say, leave the product what it is

    site: str
    part: str
    scale: float = 1.0

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return BaseWeight(self.site, self.part, 0.5)(shape, rng, base) / math.sqrt(self.scale)


@method(
    "pissa",
    PiSSA,
    paper="PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models, arXiv 2404.02948",
    formula="sum over sites of r (d_in + d_out)",
    depthwise=False,
    unfit=ranked(),
    lr=5e-4,
)
def plan(sites: Sequence[Site], config: PiSSA) -> Plan:
    """W' = W_res + s B A, W_res = W - s B0 A0. A and B start at A0 = sqrt(S_r / s) V_r^T and B0 = U_r sqrt(S_r / s).

    Shapes: A, A0 (r, d_in), B, B0 (d_out, r). Source: arXiv 2404.02948, eqs. (2) to (5).
    Differs: the base, which others read too, keeps W; B0 A0 is frozen, rebuilt from W and taken away in the same
    product. An exact SVD instead of the fast randomised one: seconds for a width of 4096, once when a tenant is added.
    Raises: when r is more than a width.
    """
    s = 1.0 if config.alpha is None else config.alpha / config.rank
    pools, uses = {}, []
    for site in sites:
        if config.rank > min(site.out, site.inp):
            raise CommonweightError(
                f"pissa: {site.name}: rank={config.rank} is more than the {min(site.out, site.inp)} singular values of "
                f"a weight ({site.out}, {site.inp}); lower rank, or exclude the site"
            )
        shapes = {"A": ("V", (config.rank, site.inp)), "B": ("U", (site.out, config.rank))}
        starts = {k: (shape, Principal(site.name, part, s)) for k, (part, shape) in shapes.items()}
        mine, reads = twins(site.name, starts)
        pools |= mine
        uses.append(Use(site.name, Anchored(s), reads))
    return Plan(pools, tuple(uses))
