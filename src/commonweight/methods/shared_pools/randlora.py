"""RandLoRA: full-rank updates from frozen random bases that the whole model shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...address import WHOLE, Window
from ...bind import RandomBases
from ...core import ZEROS, Constant, Plan, Pool, Read, Site, Uniform, Use, config, option
from ..registry import method


@config
class RandLoRA:
    rank: int = option(32, "rank r of one base; a SMALLER rank trains MORE: d_min / r bases make full rank", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 20 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input, in training", ge=0, le=0.95)
    stored: bool = option(False, "keep the frozen projections in the file instead of rebuilding them from the seed")


@method(
    "randlora",
    RandLoRA,
    paper="RandLoRA: Full-rank parameter-efficient fine-tuning of large models, arXiv 2502.00987",
    formula="sum over sites of n (r + d_min), n = ceil(d_min / r), d_min = min(d_in, d_out)",
    lr=1e-3,
    size=("-rank",),
)
def plan(sites: Sequence[Site], config: RandLoRA) -> Plan:
    """W' = W + (alpha / r) sum_j B_j diag(lam_j) A diag(gamma_j), n = ceil(d_min / r) bases of rank r.

    Shapes: A (r, d_min) and B (d_max, n r), cut from one frozen pair for all sites, uniform with unit variance and
    in no file unless `stored`; lam (r, n) starts at zero, gamma (n, d_min) at 1 / d_min. Where d_in > d_out the sum
    is transposed.
    Linear in: lam and gamma, each alone. Source: arXiv 2502.00987, eq. (4) and section 4.2 (one A for all bases).
    Differs: as in PEFT 0.21.2, which column of B belongs to which (k, j) is k n + j of the site's own n; the columns
    are independent draws, so that their order has no meaning.
    """
    r, d_out, d_in = config.rank, max(s.out for s in sites), max(s.inp for s in sites)
    scale = 20.0 if config.alpha is None else config.alpha / r
    unit = Uniform(math.sqrt(3.0))
    wide = r * math.ceil(min(d_in, d_out) / r)
    pools = {
        "randlora.A": Pool((r, min(d_in, d_out)), unit, train=False, save=config.stored),
        "randlora.B": Pool((max(d_in, d_out), wide), unit, train=False, save=config.stored),
    }
    uses = []
    for s in sites:
        small, large = sorted((s.inp, s.out))
        n = math.ceil(small / r)
        # gamma starts at 1 / d_min: its rate falls with its size, so that a step stays at some 3 % of it.
        pools[f"{s.name}.lam"] = Pool((r, n), ZEROS)
        pools[f"{s.name}.gamma"] = Pool((n, small), Constant(1 / max(n, small)), lr=min(1.0, 32 / small))
        reads = {
            "A": Read(Window(r, small), ("randlora.A",)),
            "B": Read(Window(large, n * r), ("randlora.B",)),
            "lam": Read(WHOLE, (f"{s.name}.lam",)),
            "gamma": Read(WHOLE, (f"{s.name}.gamma",)),
        }
        uses.append(Use(s.name, RandomBases(scale, config.dropout, s.inp > s.out), reads))
    return Plan(pools, tuple(uses))
