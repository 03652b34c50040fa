"""LoHa: the entrywise product of two low-rank updates, of rank r squared with the numbers of rank 2 r."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import RowPairs
from ...bind import LowRank
from ...core import ZEROS, Plan, Pool, Read, Site, Uniform, Use, config, kaiming, option
from ..registry import method


@config
class LoHa:
    rank: int = option(8, "rank r of both factors; the update has rank r * r", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)


@method(
    "loha",
    LoHa,
    paper="FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, arXiv 2108.06098",
    formula="sum over sites of 2 r (d_in + d_out)",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: LoHa) -> Plan:
    """W' = W + (alpha / r) (B1 A1) o (B2 A2), entry by entry; A2 is zero at the start.

    Shapes: A1, A2 (r, d_in), B1, B2 (r, d_out), kept transposed. Linear in: each factor alone. Cost: as LoRA of rank
    r * r, which it is exactly: rows i of A1 and j of A2 multiplied are row (i, j) of its A.
    Source: arXiv 2108.06098, proposition 1; start and scale as PEFT 0.21.2 (LyCORIS, arXiv 2309.14859, section 3).
    Differs: convolutions are matrices (PEFT's use_effective_conv2d is not built); no dropout.
    """
    r = config.rank
    bind = LowRank(1.0 if config.alpha is None else config.alpha / r)
    pools, uses = {}, []
    for s in sites:
        for i, start in ((1, kaiming(s.inp)), (2, ZEROS)):
            pools[f"{s.name}.A{i}"] = Pool((r, s.inp), start)
            pools[f"{s.name}.B{i}"] = Pool((r, s.out), Uniform(r**-0.5))
        reads = {
            "A": Read(RowPairs(), (f"{s.name}.A1", f"{s.name}.A2")),
            "B": Read(RowPairs(transpose=True), (f"{s.name}.B1", f"{s.name}.B2")),
        }
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
