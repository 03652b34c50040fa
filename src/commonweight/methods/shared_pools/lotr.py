"""LoTR: the updates of all layers of a projection type are one Tucker-2 tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import families, method


@config
class LoTR:
    rank: int = option(16, "Tucker rank r of both factors", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of V, in training", ge=0, le=0.95)


@method(
    "lotr",
    LoTR,
    paper="LoTR: Low Tensor Rank Weight Adaptation, arXiv 2402.01376",
    formula="r (d_in + d_out) per projection type + r * r per site",
    lr=2e-3,
    common="U and V; its own: the cores C",
)
def plan(sites: Sequence[Site], config: LoTR) -> Plan:
    """dW_l = (alpha / r) U C_l V^T: U and V once per projection type, the core C_l per layer, zero at the start.

    Shapes: U (d_out, r), C_l (r, r), V^T (r, d_in). Linear in: U, C_l and V, each alone. Cost: as LoRA and T r^2.
    Source: arXiv 2402.01376, section 3, and the official code (factors random, core zero). Differs: V is drawn as
    LoRA's A and U with variance 1 / r, so that U C moves as LoRA's B does; the code draws both from N(0, 1).
    """
    pools, uses, r = {}, [], config.rank
    bind = LowRank((2.0 * r if config.alpha is None else config.alpha) / r, config.dropout)
    for family, group in families(sites).items():
        pools[f"{family}.U"] = Pool((group[0].out, r), Normal(1.0 / math.sqrt(r)), scope="shared")
        pools[f"{family}.V"] = Pool((r, group[0].inp), kaiming(group[0].inp), scope="shared")
        for s in group:
            pools[f"{s.name}.C"] = Pool((r, r), ZEROS)
            reads = {"A": f"{family}.V", "B": f"{family}.U", "M": f"{s.name}.C"}
            uses.append(Use(s.name, bind, {slot: Read(WHOLE, (pool,)) for slot, pool in reads.items()}))
    return Plan(pools, tuple(uses))
