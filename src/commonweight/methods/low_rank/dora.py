"""DoRA: LoRA turns every row of a weight, a trained magnitude sets its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Magnitude
from ...core import ZEROS, Plan, Pool, Read, Rng, Site, Source, Use, config, kaiming, option, serial
from ..registry import method
from .lora import rank_and_scale, wrong_pairs


@config
class DoRA:
    rank: int = option(8, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale; none: 2 * rank", gt=0)
    rslora: bool = option(False, "scale alpha / sqrt(rank) instead of alpha / rank")
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: for some sites, first match wins", globs=True
    )
    alphas: tuple[tuple[str, float], ...] = option((), "(pattern, alpha) pairs for some sites", globs=True)

    def check(self) -> str | None:
        return wrong_pairs(ranks=self.ranks, alphas=self.alphas)


@serial
@dataclass(frozen=True)
class RowNorm:
    """The Euclidean length of every row of the frozen weight of `site`, (out,)."""

    site: str

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.linalg.vector_norm(base.weight(self.site), dim=1)


@method(
    "dora",
    DoRA,
    paper="DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv 2402.09353",
    formula="sum over sites of r (d_in + d_out) + d_out",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: DoRA) -> Plan:
    """W' = m (W + s B A) / |W + s B A|, lengths per row of W (out, inp); m starts at |W|, B at zero.

    Shapes: A (r, d_in), B (d_out, r), m (d_out,); n (d_out,) = |W| is frozen and rebuilt from the base.
    Linear in: m. Source: arXiv 2402.09353, eq. (5); |W + s B A| is a constant in the gradient (section 4.3).
    Differs: dropout acts on B A x alone, not on the rescaled W x. Cost of a call: r d_in d_out products more than LoRA.
    """
    pools, uses = {}, []
    for s in sites:
        r, scale = rank_and_scale(config, s.name)
        pools[f"{s.name}.A"] = Pool((r, s.inp), kaiming(s.inp))
        pools[f"{s.name}.B"] = Pool((s.out, r), ZEROS)
        pools[f"{s.name}.m"] = Pool((s.out,), RowNorm(s.name))
        pools[f"{s.name}.n"] = Pool((s.out,), RowNorm(s.name), train=False, save=False)
        bind = Magnitude(scale, config.dropout)
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "ABmn"}))
    return Plan(pools, tuple(uses))
