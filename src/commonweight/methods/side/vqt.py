"""VQT: queries that read the keys and values of each block, and are read by nothing but the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...address import WHOLE
from ...bind import Answered
from ...core import ZEROS, Plan, Pool, Read, Site, Uniform, Use, config, kaiming, option
from ..registry import method


@config
class VQT:
    queries: int = option(1, "queries T to each block", ge=1)
    size: int = option(16, "rank r of what is added of the answers", ge=1)


@method(
    "vqt",
    VQT,
    paper="Visual Query Tuning: Towards Effective Usage of Intermediate Representations, arXiv 2212.03220",
    formula="for each stack of n blocks n T d (1 + r) + r d",
    kinds=("queries",),
    named=(),
    lr=3e-3,
    size=("size", "queries"),
)
def plan(sites: Sequence[Site], config: VQT) -> Plan:
    """y' = y + U V [z_1; ...; z_n], z_l = Z_l / |Z_l|, Z_l = block_l(P_l) with the keys and values of its tokens in
    place of the queries' own; y what the last block gives.

    No token reads a query, and no query of a block one of another: gradients go through each block once, for T tokens.
    Shapes: P (n, T, d), V (r, n T d), U (d, r). Linear in: U and V, each alone. U begins as zero. With a cache
    generation is refused. Source: arXiv 2212.03220; github.com/andytu28/VQT @9bca87e, h2t_vit.py.
    Differs: there a linear head reads y and the z side by side; here y is changed by them, for heads are of one width
    for all tenants, and language models have theirs: with r of the number of classes or more the two say the same, but
    for y, which is not divided by its length. Queries stand where a row's last token does, where positions rotate. No
    dropout; no choice of features afterwards. U, V and r are ours.
    """
    pools, uses = {}, []
    for s in sites:
        n, t, d, r = s.inp // s.out, config.queries, s.out, config.size
        slots = {
            "P": Pool((n, t, d), Uniform(math.sqrt(6 / (3 * 16 * 16 + d)))),
            "V": Pool((r, n * t * d), kaiming(n * t * d)),
            "U": Pool((d, r), ZEROS),
        }
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        uses.append(Use(s.name, Answered(), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
