"""C-Poly: skills that all tenants have in common, and beside them some of each tenant's own."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE, OfTask
from ...bind import Skills
from ...core import ONES, ZEROS, Plan, Pool, Read, Site, Uniform, Use, config, kaiming, option
from ..choices import misnamed, named
from ..registry import method


@config
class CPoly:
    skills: int = option(3, "common skills S of every site", ge=1)
    private: int = option(1, "skills P of every site that only this tenant has", ge=1)
    rank: int = option(4, "rank r of every skill", ge=1)
    noise: bool = option(True, "in training, draw the common skills' weights around their logits")
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    tasks: str = option(
        "", "tasks by which the routing differs, with commas between; each batch says its rows'; none: one routing"
    )

    def check(self) -> str | None:
        return misnamed(self.tasks)


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

    Shapes: A (S r, d_in), B (d_out, S r), logits (S,); A' (P r, d_in), B' (d_out, P r), w (P,), one at the start; all
    B are zero there. Linear in: each A, B and w alone. Cost: as LoRA of rank (S + P) r.
    tasks: the logits, A', B' and w of every task, behind a first dimension of tasks; a row reads those of its task,
    which the batch says. Else each task is a tenant of a common.
    noise: routing(logits + l), l logistic (Gumbel-sigmoid of temperature 1), drawn in training at every call.
    Source: arXiv 2312.03248, by its abstract and its published reviews: low-rank skills, S common and P of the task's
    own (one in the experiments), weights of all by task, those of the common skills by Gumbel-sigmoid in training. The
    text of its equations and its code could not be had: that outputs of skills are summed, that z sums to one (as in
    MHR), and that w is a plain number, is ours.
    """
    pools: dict[str, Pool] = {}
    uses, r, tasks = [], config.rank, named(config.tasks)
    of, mine = ((len(tasks),), OfTask(WHOLE, tasks, (0,))) if tasks else ((), WHOLE)
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    for s in sites:
        # Weights learn faster than skills, as in Polytropon.
        kinds = (
            ("common", config.skills, Pool((*of, config.skills), Uniform(1e-3), lr=100.0)),
            ("private", config.private, Pool((*of, config.private), ONES, lr=10.0)),
        )
        for kind, n, weights in kinds:
            name, common = f"{s.name}.{kind}", kind == "common"
            for slot, shape, init in (("A", (n * r, s.inp), kaiming(s.inp)), ("B", (s.out, n * r), ZEROS)):
                scope = "shared" if common else "tenant"
                pools[f"{name}.{slot}"] = Pool(shape if common else (*of, *shape), init, scope=scope)
            pools[f"{name}.weights"] = weights
            bind = Skills(scale, config.dropout, common, common and config.noise)
            reads = {k: WHOLE if common and k != "weights" else mine for k in ("A", "B", "weights")}
            uses.append(Use(s.name, bind, {k: Read(a, (f"{name}.{k}",)) for k, a in reads.items()}))
    return Plan(pools, tuple(uses))
