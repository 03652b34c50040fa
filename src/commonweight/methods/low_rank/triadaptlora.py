"""TriAdaptLoRA: updates B C A whose square C grows by rows and columns where it grows in length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...address import WHOLE, Multiplied
from ...bind import LowRank
from ...core import ZEROS, Constant, Normal, Plan, Pool, Read, Site, Use, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .grown import ROOM, first, limits, over, ranks_of, resized, size, there, wrong_growth
from .pruned import far_from_orthonormal, widest

_START = Normal(0.02)


@config
class TriAdaptLoRA:
    GONE = ROOM
    target: int = option(8, "rank that a site has in the mean at the end", ge=1)
    start: int = option(1, "rank of every site at the start", ge=1)
    block: int | None = option(None, "ranks that a site gets at a time; none: target / 2", ge=1)
    alpha: float = option(32.0, "numerator of the scale alpha / r, r the rank that a site has", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    pace: Literal["linear", "exponential"] = option("linear", "how many sites grow at a step, of those still wanted")
    begin: float = option(0.1, "share of the steps before the first growth", ge=0, le=1)
    end: float = option(0.5, "share of the steps, the last ones, with the final ranks", ge=0, le=1)
    orthogonal: float = option(0.5, "weight of the penalty that keeps directions orthonormal", ge=0)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    def check(self) -> str | None:
        return wrong_growth(self)


@dataclass(frozen=True)
class Blocks:
    """Score of a site: by how much |C| over its number of blocks has grown since it was last looked at."""

    config: TriAdaptLoRA
    sites: tuple[str, ...]
    seed: int
    resizes: ClassVar[bool] = True

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:  # it has grown
            return {}, Edit()
        blocks = torch.ones(len(self.sites), dtype=torch.int64)
        return {"blocks": blocks, "norms": self._norms(pools, blocks)}, Edit()

    def _norms(self, pools: Pools, blocks: Tensor) -> Tensor:
        return torch.stack([torch.linalg.matrix_norm(pools[f"{s}.C"]) for s in self.sites]).cpu() / blocks

    def last(self, steps: int) -> int:
        return max(1, steps - round(self.config.end * steps))

    def settled(self, step: int, steps: int) -> bool:
        return step >= self.last(steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        c, n, last = self.config, len(self.sites), self.last(at.steps)
        if c.ranks:
            return state, Edit()
        begin, before, most = round(c.begin * at.steps), ranks_of(self.sites, at.pools), limits(self.sites, at.pools)
        total, ranks = min(c.target * n, int(most.sum())), before.clone()
        left = total - int(ranks.sum())
        if (at.step <= begin and at.step < last) or at.step > last or left <= 0:
            return state, Edit()
        norms, blocks = self._norms(at.pools, state["blocks"].cpu()), state["blocks"].cpu().clone()
        order = (norms - state["norms"].cpu()).argsort(descending=True, stable=True).tolist()
        block = c.block or max(1, c.target // 2)
        few = self.few(left, (at.step - begin) / max(1, last - begin))
        while True:
            for i in order[:few] if at.step < last else order:
                more = min(block, int(most[i] - ranks[i]), total - int(ranks.sum()))
                ranks[i] += more
                blocks[i] += int(more > 0)
            if at.step < last or int(ranks.sum()) == total:
                break
        return {"blocks": blocks, "norms": norms}, self._grown(at, before, ranks)

    def few(self, left: int, share: float) -> int:
        """Sites that grow at a step, of so many ranks that are still wanted."""
        k = left * share if self.config.pace == "linear" else math.exp(share * math.log(left))
        return min(max(1, int(k)), len(self.sites))

    def _grown(self, at: Moment, before: Tensor, now: Tensor) -> Edit:
        """Rows and columns that are new are drawn, B's new columns are zero."""
        ranks = {s: (b, r) for s, b, r in zip(self.sites, before.tolist(), now.tolist()) if r > b}
        places = {s: first(b, r) for s, (b, r) in ranks.items()}
        edit = resized(self.config, self.sites, at.pools, places, {"A": _START, "C": _START}, self.seed, str(at.step))
        gains = {f"{s}.gain": torch.full_like(at.pools[f"{s}.gain"], over(r)) for s, (_, r) in ranks.items()}
        return edit._replace(values={**edit.values, **gains})


def _schedule(config: TriAdaptLoRA, plan: Plan) -> Blocks:
    return Blocks(config, tuple(n.removesuffix(".C") for n in plan.pools if n.endswith(".C")), plan.seed)


@method(
    "triadaptlora",
    TriAdaptLoRA,
    paper="TriAdaptLoRA: Brain-Inspired Triangular Adaptive Low-Rank Adaptation, arXiv 2501.08008",
    formula="sum over sites of r (d_in + d_out) + r^2, r the rank that it has",
    lr=2e-3,
    size=("target",),
    compact=there,
    ends=lambda config, sites: widest(config, sites, config.target),
    schedule=_schedule,
    penalty=lambda config, plan, pools: config.orthogonal * far_from_orthonormal(plan, pools),
)
def plan(sites: Sequence[Site], config: TriAdaptLoRA) -> Plan:
    """h = W0 x + alpha g B C A x, g = 1 / (r + 1e-5) by the rank r that the site has; A and C normal with deviation
    0.02, B zero at the start and at what is added.

    Shapes: A (r, d_in), C (r, r), B (d_out, r). Linear in: each alone.
    Source: arXiv 2501.08008, its abstract alone, and a tuner of its authors for PEFT; the paper's own start
    was in no source that could be read, and the code's, B and C both zero, cannot train: A and C drawn is ours.
    Differs: the lower and the upper
    triangle are one matrix, where the code has the blocks of the diagonal twice; growth ends at the target exactly;
    no site has more than min(d_in, d_out). `adapt` and `Scheduled` let it grow, by a new plan each time; other loops
    train the first ranks.
    """
    pools, uses = {}, []
    for s in sites:
        r = size(config, s, config.start)
        if not r:
            continue
        pools[f"{s.name}.A"], pools[f"{s.name}.B"] = Pool((r, s.inp), _START), Pool((s.out, r), ZEROS)
        pools[f"{s.name}.C"] = Pool((r, r), _START)
        pools[f"{s.name}.gain"] = Pool((1,), Constant(over(r)), train=False)
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}
        reads["M"] = Read(Multiplied(), (f"{s.name}.C", f"{s.name}.gain"))
        uses.append(Use(s.name, LowRank(config.alpha, config.dropout), reads))
    return Plan(pools, tuple(uses))
