"""ShareLoRA: LoRA whose A, B or both exist once for all layers of a projection type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import families, method


@config
class ShareLoRA:
    rank: int = option(8, "rank r of the update", ge=1)
    share: Literal["A", "B", "AB"] = option("A", "which factor all layers of a projection type have in common")
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


@method(
    "sharelora",
    ShareLoRA,
    paper="ShareLoRA: Parameter Efficient and Robust Large Language Model Fine-tuning via Shared Low-Rank Adaptation, "
    "arXiv 2406.10785",
    formula="share=A: r (d_in per projection type + d_out per site); B: the other way round; AB: both per type",
    lr=1e-3,
    common="the factors that its layers share; its own: the others",
)
def plan(sites: Sequence[Site], config: ShareLoRA) -> Plan:
    """h = W0 x + (alpha / r) B A x with A, B or both read by every layer of one projection type; B zero at the start.

    Shapes: A (r, d_in), B (d_out, r). Linear in: A and B, each alone. Cost: as LoRA.
    Source: arXiv 2406.10785, ShareA, ShareB and ShareAB. Differs: the layers are matched by name and shape; the
    variant that shares across query, key and value inside one layer is not offered.
    """
    pools, uses = {}, []
    bind = LowRank((2.0 * config.rank if config.alpha is None else config.alpha) / config.rank, config.dropout)
    for family, group in families(sites).items():
        for s in group:
            owner = {slot: family if slot in config.share else s.name for slot in "AB"}
            for slot, shape, init in (("A", (config.rank, s.inp), kaiming(s.inp)), ("B", (s.out, config.rank), ZEROS)):
                scope = "shared" if slot in config.share else "tenant"
                pools[f"{owner[slot]}.{slot}"] = Pool(shape, init, scope=scope)
            uses.append(Use(s.name, bind, {slot: Read(WHOLE, (f"{owner[slot]}.{slot}",)) for slot in "AB"}))
    return Plan(pools, tuple(uses))
