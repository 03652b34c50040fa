"""KIND: every weight is a set of rank-one parts, some of all classes (learngenes), some of one class (tailors)."""

from __future__ import annotations

from typing import Literal

from ...bind import Product
from ...builder import Anatomy, Layout
from ...builder.factors import Components
from ...core import CommonweightError, Pool, Use, config, option
from ...core.init import Values
from .. import families as fam
from ..registry import method


@config
class KIND:
    genes: int = option(16, "rank-one parts of each matrix that are always on", ge=0)
    tailors: int = option(8, "rank-one parts of each group of tailors", ge=0)
    groups: int = option(1, "groups of tailors, of which a class has one", ge=1)
    group: int | None = option(None, "keep this group alone, for a small model of one class; none: keep all", ge=0)
    parts: Literal["all", "attention", "qkv", "ffn"] = option("all", "which matrices")

    def check(self) -> str | None:
        if self.genes + self.tailors < 1:
            return "genes and tailors are both 0"
        if self.group is not None and self.group >= self.groups:
            return f"group={self.group} of {self.groups} groups, counted from 0"
        return None


@method(
    "kind",
    KIND,
    paper="KIND: Knowledge Integration and Diversion for Training Decomposable Models, arXiv 2408.07337",
    shares="rank-one parts of a weight between all classes, beside those of one class; one gate for all depths",
    sizes=lambda depth: [{"genes": 64, "tailors": 32, "groups": 4}, {"genes": 128, "tailors": 64, "groups": 2}],
)
def plan(anatomy: Anatomy, config: KIND) -> Layout:
    """W(class) = sum over genes of u s v + g_class sum over its tailors of u s v; W = U diag(s) diag(g) V.

    Shapes: U (out, r), s (r,), V (r, in), r = genes + groups tailors; g (r,) is one pool for all matrices and depths,
    ones at the start, and not trained: `small.get_parameter(...)` of it is written to choose a class. Matrices with
    fewer than r parts stay as they are. With g = 1 and the full rank it is the original. Parameters: r (out + in + 1)
    for each matrix. Source: the abstract of arXiv 2408.07337, all that was found (the announced code was not there).
    Which parts are genes (those of the largest singular values), the sizes, and the start from a pretrained model are
    ours; U and V are not kept orthogonal, since the abstract does not say.
    """
    every = list(range(config.genes + config.groups * config.tailors))
    at = every
    if config.group is not None:
        start = config.genes + config.group * config.tailors
        at = [*every[: config.genes], *every[start : start + config.tailors]]
    pools: dict[str, Pool] = {}
    uses = []
    for family in fam.families(anatomy, "kind", fam.PARTS[config.parts]):
        for depth, w in family:
            site, most = f"{depth}.{w.name}", min(w.out, w.inp)
            if len(every) > most:
                continue

            def first(part: str, site=site, turned=w.transposed) -> Components:
                return Components(site, part, 0.0, turned, tuple(at))

            pools["gate"] = Pool((len(at),), Values((1.0,) * len(at)), train=False, dtype=w.dtype)
            pools[f"{site}.U"] = Pool((w.out, len(at)), first("B"), dtype=w.dtype)
            pools[f"{site}.V"] = Pool((len(at), w.inp), first("A"), dtype=w.dtype)
            pools[f"{site}.s"] = Pool((len(at),), first("d"), dtype=w.dtype)
            slots = {"A": f"{site}.V", "B": f"{site}.U", "d": f"{site}.s"}
            slots |= {"g": "gate"} if config.group is None and config.groups > 1 else {}
            uses.append(Use(site, Product(), fam.whole(**slots)))
    if not uses:
        raise CommonweightError(f"kind: no matrix has {len(every)} parts, genes + groups * tailors; lower them")
    if config.group is not None or config.groups == 1:
        del pools["gate"]
    return fam.instead(anatomy, pools, uses)
