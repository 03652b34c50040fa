"""SLoRA (StructuredLoRA): LoRA with a small trained matrix between A and B."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method


@config
class SLoRA:
    rank: int = option(8, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


@method(
    "slora",
    SLoRA,
    paper="NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models, arXiv 2502.14482 (StructuredLoRA)",
    formula="sum over sites of r (d_in + d_out + r)",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: SLoRA) -> Plan:
    """h = W x + (alpha / r) B M A x; A and M uniform and B zero at the start.

    Shapes: A (r, d_in), M (r, r), B (d_out, r). Linear in: A, M and B, each alone. Cost: as LoRA and T r^2.
    Source: arXiv 2502.14482, StructuredLoRA; the method `nlora` starts the same product from the base's weight.
    """
    pools, uses, r = {}, [], config.rank
    bind = LowRank((2.0 * r if config.alpha is None else config.alpha) / r, config.dropout)
    for s in sites:
        pools[f"{s.name}.A"] = Pool((r, s.inp), kaiming(s.inp))
        pools[f"{s.name}.M"] = Pool((r, r), kaiming(r))
        pools[f"{s.name}.B"] = Pool((s.out, r), ZEROS)
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AMB"}))
    return Plan(pools, tuple(uses))
