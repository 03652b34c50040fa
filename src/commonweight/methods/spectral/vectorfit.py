"""VectorFit: the singular values of every weight, and its bias, are trained."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import BiasShift, LowRank
from ...core import ZEROS, BaseWeight, Plan, Pool, Read, Site, Use, config, option
from ..registry import method


@config
class VectorFit:
    bias: bool = option(True, "the biases too, at sites that have one")


@method(
    "vectorfit",
    VectorFit,
    paper="VectorFit: Adaptive Singular & Bias Vector Fine-Tuning of Pre-trained Foundation Models, arXiv 2503.19530",
    formula="sum over sites of min(d_in, d_out), and d_out where there is a bias",
    kinds=("linear", "expert", "conv"),
    lr=5e-3,
    size=(),
)
def plan(sites: Sequence[Site], config: VectorFit) -> Plan:
    """W' = U diag(S + d) V^T, b' = b + db, d and db zero at the start; U and V are the weight's, frozen.

    Shapes: d (min(d_in, d_out),), db (d_out,). Linear in: d and db. Cost: as a LoRA of full rank, and one SVD a site.
    Source: arXiv 2503.19530, section 3.1. Differs: the additive step of S is the same as training S itself; the
    adaptive freezing of vectors (AVF) is not built, since its constants are in no source that could be read.
    """
    pools, uses = {}, []
    for s in sites:
        r = min(s.out, s.inp)
        for slot, shape, part in (("A", (r, s.inp), "V"), ("B", (s.out, r), "U")):
            init = BaseWeight(s.name, part, 0.0, rounded=True)
            pools[f"{s.name}.{slot}"] = Pool(shape, init, train=False, save=False)
        pools[f"{s.name}.d"] = Pool((r,), ZEROS)
        uses.append(Use(s.name, LowRank(), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "ABd"}))
        if config.bias and s.bias:
            pools[f"{s.name}.b"] = Pool((s.out,), ZEROS)
            uses.append(Use(s.name, BiasShift(), {"db": Read(WHOLE, (f"{s.name}.b",))}))
    return Plan(pools, tuple(uses))
