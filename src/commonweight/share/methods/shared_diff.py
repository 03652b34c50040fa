"""Shared DIFF: differential attention whose two queries and keys are one weight and a low-rank part each."""

from __future__ import annotations

from ...bind import Contrast, Doubled, Twice
from ...builder import Anatomy, Layout, tied
from ...core import ZEROS, CommonweightError, Init, Normal, Pool, Use, config, kaiming, option
from .. import families as fam
from ..registry import method


@config
class SharedDIFF:
    rank: int = option(8, "rank of the parts of query and key, each map's own", ge=1)
    std: float = option(0.02, "of the second map's B at the start; the first one's is zero", gt=0)
    seed: int = option(0, "of the first values", ge=0)


@method(
    "shared_diff",
    SharedDIFF,
    paper="Shared DIFF Transformer, arXiv 2501.17900",
    shares="one query and one key weight between the two maps of differential attention",
    sizes=lambda depth: [{"rank": 8}],
)
def plan(anatomy: Anatomy, config: SharedDIFF) -> Layout:
    """out = (softmax(q1 k1) - lambda softmax(q2 k2)) V, q_i = (W_q + B_i A_i) x, k_i likewise.

    The heads stand in the attention twice and the output projection takes the second ones off, so that every attention
    of transformers does it; the cache of a token is twice as large (the value is held twice). Parameters: 2 r (in +
    out) for each query and key, and lambda (1,) a layer. With lambda = 0, as it begins, it is the original. Source: the
    abstract of arXiv 2501.17900, all that was found; the ranks, lambda as one free number a layer, no norm of the
    heads, and the start from a pretrained model are ours.
    Raises: CommonweightError for a model that has query and key in one matrix, or no such roles, and for BERT and OPT.
    """
    pools: dict[str, Pool] = {}
    uses = []
    for at, block in enumerate(anatomy.blocks):
        by_role = {w.role: w for w in block if w.kind == "linear"}
        plain = {"query", "key", "value", "attn_out"} <= by_role.keys() and "self_attn" in by_role["query"].name
        if not plain or by_role["attn_out"].name.endswith("out_proj.weight"):  # OPT's counts its heads by the config
            raise CommonweightError(
                "shared_diff: wanted a self_attn with q, k, v and output projections of their own, as llama's; this "
                "model has none"
            )
        for role in ("query", "key"):
            w = by_role[role]
            site, slots = f"{at}.{w.module}", {}
            for i in "12":
                last: Init = ZEROS if i == "1" else Normal(config.std)
                pools[f"{site}.A{i}"] = Pool((config.rank, w.inp), kaiming(w.inp), dtype=w.dtype)
                pools[f"{site}.B{i}"] = Pool((w.out, config.rank), last, dtype=w.dtype)
                slots |= {f"A{i}": f"{site}.A{i}", f"B{i}": f"{site}.B{i}"}
            uses.append(Use(site, Doubled(), fam.whole(**slots)))
        uses.append(Use(f"{at}.{by_role['value'].module}", Twice(), {}))
        pools[f"{at}.lambda"] = Pool((1,), ZEROS, dtype=by_role["value"].dtype)
        uses.append(Use(f"{at}.{by_role['attn_out'].module}", Contrast(), fam.whole(lam=f"{at}.lambda")))
    return tied(anatomy, range(anatomy.depth), lambda at, w: None, config.seed).plus(pools, uses)
