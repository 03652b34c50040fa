"""StructuredFFN: low-rank feed-forward networks, which a dense weight guides while they train."""

from __future__ import annotations

from typing import Literal

from ...bind import Guided, Product
from ...builder import Anatomy, Layout, Mean
from ...builder.factors import Components
from ...core import CommonweightError, Pool, Use, config, option
from .. import families as fam
from ..registry import method


@config
class Structured:
    rank: int | None = option(None, "rank r of each matrix; none: half of the narrower side", ge=1)
    first_dense: bool = option(True, "the first block's network stays dense")
    guide: bool = option(False, "a dense weight beside it, which fades over the first half of healing and is dropped")
    parts: Literal["ffn", "all", "attention"] = option("ffn", "which matrices; the paper has ffn")


@method(
    "structured",
    Structured,
    paper="Investigating Low-Rank Training in Transformer Language Models, arXiv 2407.09835",
    shares="nothing between depths: each matrix of a feed-forward network is a product of two thin ones",
    sizes=lambda depth: [{}, {"rank": 128}],
)
def plan(anatomy: Anatomy, config: Structured) -> Layout:
    """y = B A x; with a guide c W x + (1 - c) B A x while it trains.

    Shapes: A (r, in) = S^(1/2) V^T, B (out, r) = U S^(1/2) of the pretrained weight's SVD. Parameters: r (in + out) for
    each matrix. With the full rank it is the original. c is half of a cosine from 1 to 0 over the first half of the
    steps; W begins as the pretrained weight. `heal` takes W away at its end; it counts for the plan's bytes until then.
    Source: arXiv 2407.09835; code CLAIRE-Labo/StructuredFFN: LowRank, post_init=svd, first_layer=true, max_step_ratio
    0.5. Differs: the SVD is of a pretrained weight, and W begins with that instead of B A, since there is one; the
    dense branch runs at each step (their `reduce_flop` is not made), nor are BlockDense and BlockShuffle.
    """
    if config.first_dense and anatomy.depth == 1:
        raise CommonweightError("structured: the model has one block, and first_dense=true leaves it as it is")
    pools: dict[str, Pool] = {}
    uses = []
    depths = range(1 if config.first_dense else 0, anatomy.depth)
    for family in fam.families(anatomy, "structured", fam.PARTS[config.parts], depths):
        for at, w in family:
            site, most = f"{at}.{w.name}", min(w.out, w.inp)
            r = min(config.rank or max(1, most // 2), most)
            half = [Components(site, part, 0.5, w.transposed) for part in "AB"]
            pools[f"{site}.A"] = Pool((r, w.inp), half[0], dtype=w.dtype)
            pools[f"{site}.B"] = Pool((w.out, r), half[1], dtype=w.dtype)
            slots = {"A": f"{site}.A", "B": f"{site}.B"}
            if config.guide:
                pools[f"{site}.W"] = Pool(w.shape, Mean((site,)), dtype=w.dtype)
                slots["W"] = f"{site}.W"
            uses.append(Use(site, Guided() if config.guide else Product(), fam.whole(**slots)))
    return fam.instead(anatomy, pools, uses)
