"""MASA: the projections of attention at all depths are sums of the matrices of one dictionary."""

from __future__ import annotations

from typing import Literal

from ...address import Mix
from ...bind import Replace
from ...builder import Anatomy, Layout
from ...builder.factors import Dictionary
from ...core import CommonweightError, Init, Normal, Pool, Read, Use, config, option
from .. import families as fam
from ..registry import method


@config
class MASA:
    matrices: int | None = option(None, "matrices S of each dictionary; none: a third of the layers it serves", ge=1)
    parts: Literal["attention", "qkv", "ffn", "all"] = option(
        "attention", "attention: query, key, value and output; qkv: not the output; ffn and all go beyond the paper"
    )
    groups: int = option(1, "stretches of neighbouring layers that have dictionaries of their own", ge=1)
    init: Literal["pca", "random"] = option("pca", "pca: of the pretrained weights; random: for training from scratch")
    std: float = option(0.02, "of the numbers of a random dictionary", gt=0)
    seed: int = option(0, "of init=random", ge=0)


@method(
    "masa",
    MASA,
    paper="Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary Learning, arXiv 2508.04581",
    shares="a dictionary of matrices for each projection of attention, of which every depth takes a sum of its own",
    sizes=lambda depth: [{"matrices": max(1, depth // 2)}, {"matrices": max(1, depth // 3)}],
)
def plan(anatomy: Anatomy, config: MASA) -> Layout:
    """W_l = sum_s c_(l,s) D_s, with dictionaries of their own for query, key, value and output.

    Shapes: D (S, d, h), c (S,) for each depth. Parameters: S (d h + L) for each projection. With S = L it is the
    original; else the squared error is the sum of the squared singular values of [vec W_1 .. vec W_L] left out.
    Cost: S sums for each number of a weight, at each forward pass. Source: arXiv 2508.04581, eq. (1) and section 3.3
    (matrix PCA, not centred), from a copy of its text; the official code was not available. Differs: the dictionary is
    scaled to the norm of the weights, and c by as much less; groups are even stretches, since the paper's rule of
    KL divergences stands in an appendix that was not found; its refinement by inputs' correlations is not made; from
    scratch c is trained itself, where the paper has a network of three layers make it while it trains.
    """
    if config.groups > anatomy.depth:
        raise CommonweightError(f"masa: groups={config.groups}; the model has {anatomy.depth} layers")
    pools: dict[str, Pool] = {}
    uses = []
    for g in range(config.groups):
        cuts = [anatomy.depth * (g + k) // config.groups for k in (0, 1)]
        for family in fam.families(anatomy, "masa", fam.PARTS[config.parts], range(*cuts)):
            of, (_, w) = fam.stored(family), family[0]
            n = min(config.matrices or max(1, len(of) // 3), len(of))
            name = f"dictionary{g}.{fam.name_of(family)}"
            first: Init = Dictionary(of) if config.init == "pca" else Normal(config.std)
            pools[name] = Pool((n, *w.shape), first, dtype=w.dtype)
            for row, (at, w) in enumerate(family):
                site = f"{at}.{w.name}"
                mine: Init = Dictionary(of, row) if config.init == "pca" else Normal(n**-0.5)
                pools[f"{site}.c"] = Pool((n,), mine, dtype=w.dtype)
                uses.append(Use(site, Replace(), {"weight": Read(Mix(), (name, f"{site}.c"))}))
    return fam.instead(anatomy, pools, uses, config.seed)
