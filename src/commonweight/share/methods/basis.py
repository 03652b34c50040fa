"""Shared factors: row and column spaces that a matrix has in common at all depths, as LoTR's updates."""

from __future__ import annotations

from typing import Literal

from ...bind import Product
from ...builder import Anatomy, Layout
from ...builder.factors import Tucker
from ...core import CommonweightError, Pool, Use, config, option
from .. import families as fam
from ..registry import method


@config
class Basis:
    rank: int = option(64, "columns of U and rows of V, at most as many as a weight has", ge=1)
    parts: Literal["all", "attention", "qkv", "ffn"] = option("all", "which matrices")
    groups: int = option(1, "stretches of neighbouring layers that have factors of their own", ge=1)
    rounds: int = option(2, "rounds of alternating least squares behind the higher-order SVD", ge=0)


@method(
    "basis",
    Basis,
    paper="LoTR: Low Tensor Rank Weight Adaptation, arXiv 2402.01376 (its factors, for whole weights)",
    shares="two factors for each matrix, between which every depth has a small core of its own",
    sizes=lambda depth: [{"rank": 64}, {"rank": 256}],
)
def plan(anatomy: Anatomy, config: Basis) -> Layout:
    """W_l = U C_l V, U and V once for all depths of a matrix.

    Shapes: U (out, r), C_l (r, r), V (r, in). Parameters: r (out + in) + L r^2 for each matrix. With r = max(out, in)
    it is the original. Cost: T (r in + r^2 + r out) products. Source: arXiv 2402.01376, section 3, the form of its
    updates. Differs: whole weights have it here, and begin with the Tucker-2 decomposition of the pretrained ones; both
    are ours.
    """
    if config.groups > anatomy.depth:
        raise CommonweightError(f"basis: groups={config.groups}; the model has {anatomy.depth} layers")
    pools: dict[str, Pool] = {}
    uses = []
    for g in range(config.groups):
        cuts = [anatomy.depth * (g + k) // config.groups for k in (0, 1)]
        for family in fam.families(anatomy, "basis", fam.PARTS[config.parts], range(*cuts)):
            of, (_, w) = fam.stored(family), family[0]
            k, r = ranks = min(config.rank, w.out), min(config.rank, w.inp)

            def first(part: str, core: str = "", of=of, ranks=ranks, turned=w.transposed) -> Tucker:
                return Tucker(of, part, ranks, core, turned, config.rounds)

            name = f"basis{g}.{fam.name_of(family)}"
            pools[f"{name}.U"] = Pool((w.out, k), first("B"), dtype=w.dtype)
            pools[f"{name}.V"] = Pool((r, w.inp), first("A"), dtype=w.dtype)
            for at, w in family:
                site = f"{at}.{w.name}"
                pools[f"{site}.C"] = Pool((k, r), first("M", site), dtype=w.dtype)
                uses.append(Use(site, Product(), fam.whole(A=f"{name}.V", B=f"{name}.U", M=f"{site}.C")))
    return fam.instead(anatomy, pools, uses)
