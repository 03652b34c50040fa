"""TinyLoRA: LoRA-XS whose core combines a few frozen random matrices; only their weights are trained."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE, Mix
from ...bind import LowRank
from ...core import ZEROS, BaseWeight, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import method
from ..widths import ranked
from .lora_xs import fits


@config
class TinyLoRA:
    rank: int = option(2, "rank r of the frozen factors, of the base's SVD", ge=1)
    vectors: int = option(64, "numbers u of a site, or of a group of sites", ge=1)
    groups: int = option(0, "groups of sites, in their order, that share one vector each; 0: every site its own", ge=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    stored: bool = option(False, "whether the file holds A, B and P, as after an import")


def group(i: int, sites: int, groups: int) -> int:
    """Which of so many groups the i-th of so many sites is in, as PEFT 0.21.2 deals them out."""
    return min(i // max(1, sites // groups), groups - 1)


@method(
    "tinylora",
    TinyLoRA,
    paper="Learning to Reason in 13 Parameters, arXiv 2602.04118",
    formula="u per site, or per group of sites",
    unfit=ranked(),
    lr=1e-2,
    size=("vectors",),
)
def plan(sites: Sequence[Site], config: TinyLoRA) -> Plan:
    """W' = W + B (sum_i v_i P_i) A; A = S_r^1/2 V_r^T and B = U_r S_r^1/2 frozen, P_i random, v zero at the start.

    Shapes: v (u,), P (u, r, r) of variance 1 / r, from the seed. Linear in: v. Cost: as LoRA and u r r products.
    Source: arXiv 2602.04118, of which only what PEFT 0.21.2 says of it was at hand; factors and P as there.
    Differs: P and U, V are in no file, but where they came from PEFT's; the rate falls as 1 / u beyond PEFT's 64
    numbers, since all of them move the same r x r core (ours: at 3,640 it answered by chance).
    """
    r, u, kept, pools, uses = config.rank, config.vectors, config.stored, {}, []
    G = min(config.groups, len(sites))
    for i, s in enumerate(sites):
        fits("tinylora", s, r)
        v = f"{s.name}.v" if not config.groups else f"tinylora.v{group(i, len(sites), G)}"
        pools[v] = Pool((u,), ZEROS, lr=min(1.0, 64 / u))  # ours: a step moves the core by u times the rate
        pools[f"{s.name}.P"] = Pool((u, r, r), Normal(r**-0.5), train=False, save=kept)
        pools[f"{s.name}.A"] = Pool((r, s.inp), BaseWeight(s.name, "V", 0.5), train=False, save=kept)
        pools[f"{s.name}.B"] = Pool((s.out, r), BaseWeight(s.name, "U", 0.5), train=False, save=kept)
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}
        uses.append(Use(s.name, LowRank(1.0, config.dropout), {**reads, "M": Read(Mix(), (f"{s.name}.P", v))}))
    return Plan(pools, tuple(uses))
