"""ASLoRA: updates whose A all layers share, and whose B are merged while they train."""

from __future__ import annotations

from dataclasses import replace

from ...address import WHOLE
from ...bind import LowRank
from ...builder import Anatomy, Layout, tied
from ...core import ZEROS, CommonweightError, Pool, Read, Use, config, kaiming, option
from ..registry import method


@config
class ASLoRA:
    rank: int = option(8, "rank of the updates", ge=1)
    roles: tuple[str, ...] = option(("query", "value", "qkv"), "which matrices have an update, by role")


@method(
    "aslora",
    ASLoRA,
    paper="ASLoRA: Adaptive Sharing Low-Rank Adaptation Across Layers, arXiv 2412.10135",
    shares="updates: A of all layers, B of those that have become alike; the model itself is frozen",
    sizes=lambda depth: [{}],
)
def plan(anatomy: Anatomy, config: ASLoRA) -> Layout:
    """y = W_l x + B_l A x, one A (r, in) for each kind of matrix, B_l = 0 to begin with: the model itself.

    B are merged by `share.Merging` while `heal` trains. Parameters: r in for each kind, and r out for each B that is
    left. Once all are merged, A and B are those of ShareLoRA. Source: arXiv 2412.10135, sections 3.1 and 3.2, as an
    audit quotes them; there is no code. Differs: no scale alpha / r (it is 1).
    Raises: CommonweightError for roles that no layer has, and where blocks of different kinds alternate.
    """
    layout = tied(anatomy, range(anatomy.depth), lambda at, weight: None)
    frozen = {n: replace(p, train=False) for n, p in layout.plan.pools.items()}
    layout = replace(layout, plan=layout.plan._replace(pools=frozen))
    pools: dict[str, Pool] = {}
    uses = []
    for at, weights in enumerate(anatomy.blocks):
        for w in weights:
            if w.kind == "linear" and w.role in config.roles:
                a, b = f"A.{w.name}", f"{at}.{w.name}.B"
                if a in pools and pools[a].shape != (config.rank, w.inp):
                    raise CommonweightError(f"aslora: {at}.{w.name} reads {w.inp} numbers, layers before it others")
                pools[a] = Pool((config.rank, w.inp), kaiming(w.inp), dtype=w.dtype)
                pools[b] = Pool((w.out, config.rank), ZEROS, dtype=w.dtype)
                uses.append(Use(f"{at}.{w.name}", LowRank(1.0), {"A": Read(WHOLE, (a,)), "B": Read(WHOLE, (b,))}))
    if not uses:
        there = sorted({w.role for w in anatomy.blocks[0] if w.kind == "linear"})
        raise CommonweightError(f"aslora: no layer is one of {', '.join(config.roles)}; these have {', '.join(there)}")
    return layout.plus(pools, uses)
