"""Polytropon and MHR: every tenant mixes its own adapter from one inventory of skills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ...address import WHOLE, Heads, OfTask
from ...bind import Drawn, LowRank
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Uniform, Use, config, kaiming, option
from ..choices import misnamed, named
from ..registry import method
from ..widths import divides


@config
class Poly:
    skills: int = option(8, "low-rank skills S in every site's inventory", ge=1)
    rank: int = option(4, "rank r of a skill, and of the mixture", ge=1)
    heads: int = option(1, "blocks h of A and B that are routed apart: 1 is Polytropon, more are MHR", ge=1)
    routing: Literal["site", "shared"] = option("site", "routing weights of each site's own, or one set for all")
    noise: bool = option(False, "in training, draw the routing weights around their logits: Polytropon; MHR does not")
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    tasks: str = option(
        "", "tasks by which the routing differs, with commas between; each batch says its rows'; none: one routing"
    )

    def check(self) -> str | None:
        return misnamed(self.tasks)


@method(
    "poly",
    Poly,
    paper="Combining Modular Skills in Multitask Learning, arXiv 2202.13914; with heads, MHR: Multi-Head Adapter "
    "Routing for Cross-Task Generalization, arXiv 2211.03831",
    formula="sum over sites of S r (d_in + d_out) + S h",
    unfit=divides("heads"),
    lr=1e-3,
    common="the inventory of skills; its own: the routing",
    size=("rank", "skills"),
)
def plan(sites: Sequence[Site], config: Poly) -> Plan:
    """dW = (alpha / r) B A, head by head A = concat_h sum_i z_hi A_i^h and B likewise; z = routing(logits), B_i = 0.

    Shapes: inventory A (h, S, r, d_in / h) -> A (r, d_in), inventory B (h, S, r, d_out / h) -> B (d_out, r), logits
    (h, S). Linear in: A and B, each alone. Cost: as LoRA and S r (d_in + d_out) products to mix.
    tasks: logits (tasks, h, S), and a row reads those of its task, which the batch says, as in both codes; else each
    task is a tenant of a common. `merged` wants one of them.
    MHR-z is a tenant of a common that is frozen: it trains S h numbers a site. MHR-mu is `mean`.
    noise: routing(logits + l), l logistic (Gumbel-sigmoid of temperature 1), drawn in training for A and B together, at
    every call; out of training nothing is drawn. Such a tenant is served more slowly, see `Drawn`.
    Source: arXiv 2202.13914, section 2, and arXiv 2211.03831, section 3, in the form of both official codes (weights
    are averaged, then multiplied). Polytropon's code always draws in training; MHR's can, and its settings for
    Polytropon and MHR do not. Differs: one draw for all rows of a tenant in a batch, where both codes draw for each
    row; scale 2 by default, where Polytropon's is 1 / r. Raises: when h does not divide a width.
    """
    pools: dict[str, Pool] = {}
    uses, h, r = [], config.heads, config.rank
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    tasks = named(config.tasks)
    of = (len(tasks),) if tasks else ()
    bind = (Drawn if config.noise else LowRank)(scale, config.dropout)
    shared = config.routing == "shared"
    for s in sites:
        logits = "poly.logits" if shared else f"{s.name}.logits"
        # Routing learns two orders of magnitude faster than skills; the rate is not divided by the sites once more.
        pools[logits] = Pool((*of, h, config.skills), Uniform(1e-3), lr=100.0 * (len(sites) if shared else 1) ** 0.5)
        reads = {}
        for slot, width, init in (("A", s.inp, kaiming(s.inp // h or 1)), ("B", s.out, ZEROS)):
            if width % h:
                choose = [d for d in range(1, 65) if s.inp % d == 0 and s.out % d == 0][:5]
                raise CommonweightError(
                    f"poly: {s.name}: width {width} of {slot} is not a multiple of heads={h}; choose heads from "
                    f"{choose}, or exclude the site"
                )
            pools[f"{s.name}.{slot}"] = Pool((h, config.skills, r, width // h), init, scope="shared")
            mixed = OfTask(Heads(slot == "B"), tasks) if tasks else Heads(slot == "B")
            reads[slot] = Read(mixed, (f"{s.name}.{slot}", logits))
        if config.noise:
            reads = {slot: Read(WHOLE, read.pools[:1]) for slot, read in reads.items()}
            reads["logits"] = Read(OfTask(WHOLE, tasks, (0,)) if tasks else WHOLE, (logits,))
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))


def mean(host: Any, poly: str, name: str) -> Any:
    """MHR-mu: a new LoRA tenant that starts from the mean of a tenant's inventory, and is trained without routing.

    host: a `Host`; poly: a tenant of this method; its head goes along. Source: arXiv 2211.03831, section 3.3, and the
    official code, which averages A and B apart. Raises: CommonweightError when `poly` is no such tenant.
    """
    old = host[poly]
    if not isinstance(old.config, Poly):
        raise CommonweightError(
            f"poly: {poly}: a mean is taken of a poly tenant's inventory; this one is of {old.method.name}"
        )
    c, used = old.config, {s.name for s in old.sites}
    low = {"rank": c.rank, "alpha": c.alpha, "dropout": c.dropout}
    new = host.add(name, "lora", sites=lambda site, _: site in used, seed=old.plan.seed, labels=old.labels, **low)
    with torch.no_grad():
        for pool, value in new.pools.items():
            given = old.pools[pool]
            if given.dim() == 4:
                given = given.mean(1).movedim(0, 1).flatten(1)
                given = given.mT if pool.endswith(".B") else given
            value.copy_(given)
    return new
