"""VeRA: one frozen random pair of matrices for the whole model, two trained vectors for every site."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...address import WHOLE, Window
from ...bind import LowRank
from ...core import ZEROS, Constant, Plan, Pool, Read, Site, Uniform, Use, config, option
from ..registry import method


@config
class VeRA:
    rank: int = option(256, "rank r of the shared random matrices", ge=1)
    d_initial: float = option(0.1, "first value of d; the paper found 0.1 or less best", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    stored: bool = option(False, "keep the frozen projections in the file instead of rebuilding them from the seed")


@method(
    "vera",
    VeRA,
    paper="VeRA: Vector-based Random Matrix Adaptation, arXiv 2310.11454",
    formula="sum over sites of r + d_out",
    lr=1e-2,
)
def plan(sites: Sequence[Site], config: VeRA) -> Plan:
    """h = W0 x + diag(b) B diag(d) A x; A and B frozen and shared, d starts at 0.1, b at zero.

    Shapes: A (r, max d_in), B (max d_out, r), of which a site reads the leading corner; d (r,), b (d_out,).
    A and B are Kaiming uniform, rebuilt from the seed unless `stored`. Linear in: d and b, each alone.
    Source: arXiv 2310.11454, eq. (2) and section 3.2.
    """
    r, d_in, d_out = config.rank, max(s.inp for s in sites), max(s.out for s in sites)
    pools = {
        "vera.A": Pool((r, d_in), Uniform(math.sqrt(6 / d_in)), train=False, save=config.stored),
        "vera.B": Pool((d_out, r), Uniform(math.sqrt(6 / r)), train=False, save=config.stored),
    }
    uses = []
    for s in sites:
        pools[f"{s.name}.d"] = Pool((r,), Constant(config.d_initial))
        pools[f"{s.name}.b"] = Pool((s.out,), ZEROS)
        reads = {"A": Read(Window(r, s.inp), ("vera.A",)), "B": Read(Window(s.out, r), ("vera.B",))}
        reads |= {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "db"}
        uses.append(Use(s.name, LowRank(1.0, config.dropout), reads))
    return Plan(pools, tuple(uses))
