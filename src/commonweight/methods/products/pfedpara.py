"""pFedPara: an update that is an entrywise product of what everybody shares and what is one's own."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import RowPairs
from ...bind import LowRank
from ...core import ZEROS, Plan, Pool, Read, Site, Uniform, Use, config, option
from ..registry import method


@config
class PFedPara:
    rank: int = option(4, "rank r of both factors; the update's is at most r * (r + 1)", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)


@method(
    "pfedpara",
    PFedPara,
    paper="FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, arXiv 2108.06098",
    formula="sum over sites of 2 r (d_in + d_out), half of them shared",
    lr=1e-3,
    common="W1 = B1 A1; its own: W2 = B2 A2",
)
def plan(sites: Sequence[Site], config: PFedPara) -> Plan:
    """W' = W + (alpha / r) (B1 A1) o (B2 A2 + 1), entry by entry; A1 and A2 are zero at the start.

    Shapes: A1, A2 (r, d_in), B1, B2 (r, d_out), kept transposed. Linear in: each factor alone. Cost: as LoRA of rank
    r (r + 1), which it is exactly: rows i of A1 and j of A2, or ones, multiplied are a row of its A.
    Source: arXiv 2108.06098, section 2.3. Differs: it is an update of a pretrained weight, not the weight itself, so
    that it starts at zero; no Jacobian correction; convolutions are matrices.
    """
    r = config.rank
    bind = LowRank(1.0 if config.alpha is None else config.alpha / r)
    pools, uses = {}, []
    for s in sites:
        for i in (1, 2):
            scope = "shared" if i == 1 else "tenant"
            pools[f"{s.name}.A{i}"] = Pool((r, s.inp), ZEROS, scope=scope)
            pools[f"{s.name}.B{i}"] = Pool((r, s.out), Uniform(r**-0.5), scope=scope)
        reads = {
            "A": Read(RowPairs(ones=True), (f"{s.name}.A1", f"{s.name}.A2")),
            "B": Read(RowPairs(transpose=True, ones=True), (f"{s.name}.B1", f"{s.name}.B2")),
        }
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
