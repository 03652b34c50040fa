"""VectorFit: the singular values of every weight, and its bias, are trained; those that moved most rest for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...address import WHOLE
from ...bind import BiasShift, LowRank
from ...core import ZEROS, BaseWeight, Plan, Pool, Read, Site, Use, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method


@config
class VectorFit:
    bias: bool = option(True, "the biases too, at sites that have one")
    resting: float = option(0.1, "share of the vectors that rest at a time, the strongest ones; 0: none", ge=0, le=0.9)
    begin: float = option(0.1, "share of the steps before the first vector rests", ge=0, le=1)
    every: int = option(5, "steps between two choices of those that rest", ge=1)
    smooth: float = option(0.9, "how slowly a vector's strength follows how far it has moved", ge=0, le=0.999)


@dataclass(frozen=True)
class Freezing:
    """AVF. A vector is a site's singular values or its bias. Its strength s is zero at the start, and after every step
    s <- smooth s + (1 - smooth) mean |v - v_0|. At a choice the strongest vectors begin to rest, and those that rested
    train again unless they are still among them."""

    config: VectorFit
    vectors: tuple[str, ...]

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        first = {f"first/{n}": pools[n].detach().clone() for n in self.vectors}
        return {"strength": torch.zeros(len(self.vectors), dtype=torch.float64), **first}, Edit()

    def settled(self, step: int, steps: int) -> bool:
        return True

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        c = self.config
        if not (few := round(c.resting * len(self.vectors))):
            return state, Edit()
        moves = [(at.pools[n] - state[f"first/{n}"].to(at.pools[n])).abs().mean().double() for n in self.vectors]
        moved = torch.stack(moves).to(state["strength"])
        strength = c.smooth * state["strength"] + (1 - c.smooth) * moved
        if at.step < c.begin * at.steps or at.step % c.every:
            return {**state, "strength": strength}, Edit()
        strongest = strength.argsort(descending=True, stable=True)[:few].tolist()
        return {**state, "strength": strength}, Edit(resting=frozenset(self.vectors[i] for i in strongest))


def _schedule(config: VectorFit, plan: Plan) -> Freezing | None:
    if not config.resting:
        return None
    mine = [n.removesuffix(".d") for n in plan.pools if n.endswith(".d")]
    return Freezing(config, tuple(f"{s}.{k}" for s in mine for k in "db" if f"{s}.{k}" in plan.pools))


@method(
    "vectorfit",
    VectorFit,
    paper="VectorFit: Adaptive Singular & Bias Vector Fine-Tuning of Pre-trained Foundation Models, arXiv 2503.19530",
    formula="sum over sites of min(d_in, d_out), and d_out where there is a bias",
    kinds=("linear", "expert", "conv"),
    lr=5e-3,
    size=(),
    schedule=_schedule,
)
def plan(sites: Sequence[Site], config: VectorFit) -> Plan:
    """W' = U diag(S + d) V^T, b' = b + db, d and db zero at the start; U and V are the weight's, frozen.

    Shapes: d (min(d_in, d_out),), db (d_out,). Linear in: d and db. Cost: as a LoRA of full rank, and one SVD a site.
    Source: arXiv 2503.19530, section 3.1. Differs: the additive step of S is the same as training S itself. Of the
    adaptive freezing (AVF) only the abstract could be read: vectors that have trained most are frozen for a while. How
    strength is measured and the constants `resting`, `begin`, `every` and `smooth` are OURS. `adapt` and `Scheduled`
    let vectors rest; other loops train all of them.
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
