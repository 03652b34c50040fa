"""C-Poly: skills that all tenants have in common, and beside them some of each tenant's own."""

from __future__ import annotations

from collections.abc import Sequence

from ..address import WHOLE, Stack
from ..bind import LowRank
from ..core import ONES, ZEROS, Plan, Pool, Read, Site, Uniform, Use, config, kaiming, option
from .registry import method


@config
class CPoly:
    skills: int = option(3, "common skills S of every site", ge=1)
    private: int = option(1, "skills P of every site that only this tenant has", ge=1)
    rank: int = option(4, "rank r of every skill", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


@method(
    "cpoly",
    CPoly,
    paper="Customizable Combination of Parameter-Efficient Modules for Multi-Task Learning, arXiv 2312.03248",
    formula="sum over sites of (S + P) (r (d_in + d_out) + 1)",
    lr=1e-3,
    common="the common skills; its own: the private ones and the weights of all",
    size=("rank", "skills"),
)
def plan(sites: Sequence[Site], config: CPoly) -> Plan:
    """dW = (alpha / r) (sum_i z_i B_i A_i + sum_j w_j B'_j A'_j): z = routing(logits) over the common skills, w free.

    Shapes: A (S r, d_in), B (S, d_out, r), logits (S,); A' (P r, d_in), B' (P, d_out, r), w (P,), one at the start; all
    B are zero there. Linear in: each A, B and w alone. Cost: as LoRA of rank (S + P) r.
    Source: arXiv 2312.03248, section 3.2: every skill is a LoRA, their outputs are summed; the assignment matrix's
    rows are the tenants' logits and w. Differs: z in training is its expectation, where the paper draws relaxed
    Bernoulli numbers (Gumbel-sigmoid); w is a plain number.
    """
    pools: dict[str, Pool] = {}
    uses, r = [], config.rank
    bind = LowRank((2.0 * r if config.alpha is None else config.alpha) / r, config.dropout)
    for s in sites:
        # Weights learn faster than skills, as in Polytropon.
        kinds = (
            ("common", config.skills, Pool((config.skills,), Uniform(1e-3), lr=100.0)),
            ("private", config.private, Pool((config.private,), ONES, lr=10.0)),
        )
        for kind, n, weights in kinds:
            name, common = f"{s.name}.{kind}", kind == "common"
            for slot, shape, init in (("A", (n * r, s.inp), kaiming(s.inp)), ("B", (n, s.out, r), ZEROS)):
                pools[f"{name}.{slot}"] = Pool(shape, init, scope="shared" if common else "tenant")
            pools[f"{name}.weights"] = weights
            reads = {
                "A": Read(WHOLE, (f"{name}.A",)),
                "B": Read(Stack(routed=common), (f"{name}.B", f"{name}.weights")),
            }
            uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
