"""TriAdaptLoRA: updates B C A whose square C grows by rows and columns where it grows in length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...address import WHOLE, Multiplied
from ...bind import LowRank
from ...core import ZEROS, Constant, Normal, Plan, Pool, Read, Rng, Site, Use, config, option
from ...core.schedule import Edit, Moment, Pools, State
from ..registry import method
from .grown import over, wrong_growth
from .lora import pick
from .pruned import far_from_orthonormal

_START = Normal(0.02)


@config
class TriAdaptLoRA:
    target: int = option(8, "rank that a site has in the mean at the end", ge=1)
    start: int = option(1, "rank of every site at the start", ge=1)
    block: int | None = option(None, "ranks that a site gets at a time; none: target / 2", ge=1)
    most: int | None = option(None, "rank that a site can have; none: 2 * target", ge=1)
    alpha: float = option(32.0, "numerator of the scale alpha / r, r the rank that a site has", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    pace: Literal["linear", "exponential"] = option("linear", "how many sites grow at a step, of those still wanted")
    begin: float = option(0.1, "share of the steps before the first growth", ge=0, le=1)
    end: float = option(0.5, "share of the steps, the last ones, with the final ranks", ge=0, le=1)
    orthogonal: float = option(0.5, "weight of the penalty that keeps directions orthonormal", ge=0)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    @property
    def room(self) -> int:
        return 2 * self.target if self.most is None else self.most

    def check(self) -> str | None:
        return wrong_growth(self)


@dataclass(frozen=True)
class Blocks:
    """Score of a site: by how much |C| over its number of blocks has grown since it was last looked at."""

    config: TriAdaptLoRA
    sites: tuple[str, ...]
    seed: int

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:  # it has grown
            return {}, Edit()
        n = len(self.sites)
        ranks, blocks = torch.full((n,), self.config.start), torch.ones(n, dtype=torch.int64)
        edit = self._held(pools, torch.full((n,), self.config.room), ranks)
        cut = {f"{s}.C": edit.masks[f"{s}.C"] * pools[f"{s}.C"] for s in self.sites}
        return {"ranks": ranks, "blocks": blocks, "norms": self._norms(cut, blocks)}, edit

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
        first, ranks = round(c.begin * at.steps), state["ranks"].clone()
        left = c.target * n - int(ranks.sum())
        if (at.step <= first and at.step < last) or at.step > last or not left:
            return state, Edit()
        norms, blocks = self._norms(at.pools, state["blocks"]), state["blocks"].clone()
        order = (norms - state["norms"]).argsort(descending=True, stable=True).tolist()
        size, total = c.block or max(1, c.target // 2), c.target * n
        few = self.few(left, (at.step - first) / max(1, last - first))
        while True:
            for i in order[:few] if at.step < last else order:
                more = min(size, c.room - int(ranks[i]), total - int(ranks.sum()))
                ranks[i] += more
                blocks[i] += int(more > 0)
            if at.step < last or int(ranks.sum()) == total:
                break
        return {"ranks": ranks, "blocks": blocks, "norms": norms}, self._held(at.pools, state["ranks"], ranks)

    def few(self, left: int, share: float) -> int:
        """Sites that grow at a step, of so many ranks that are still wanted."""
        k = left * share if self.config.pace == "linear" else math.exp(share * math.log(left))
        return min(max(1, int(k)), len(self.sites))

    def _held(self, pools: Pools, before: Tensor, now: Tensor) -> Edit:
        """C of the ranks that there are; rows and columns that are new are drawn, B's new columns are zero."""
        values, masks = {}, {}
        for s, b, r in zip(self.sites, before.tolist(), now.tolist()):
            C = pools[f"{s}.C"]
            there = torch.arange(len(C), device=C.device) < r
            masks[f"{s}.C"] = (there[:, None] & there).to(C)
            if r > b:
                drawn = _START(tuple(C.shape), Rng(self.seed, f"{s}.C/{r}"), None).to(C)  # type: ignore[arg-type]
                old = torch.arange(len(C), device=C.device) < b
                values[f"{s}.C"] = torch.where(old[:, None] & old, C, drawn)
            values[f"{s}.gain"] = torch.full_like(pools[f"{s}.gain"], over(r))
        return Edit(values=values, masks=masks)


def _schedule(config: TriAdaptLoRA, plan: Plan) -> Blocks:
    return Blocks(config, tuple(n.removesuffix(".C") for n in plan.pools if n.endswith(".C")), plan.seed)


def _compact(config: TriAdaptLoRA, pools: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The ranks that there are, of which the scale tells how many."""
    out, ranks = {}, []
    for n, gain in pools.items():
        if n.endswith(".gain"):
            s, r = n.removesuffix(".gain"), round(1 / gain.item())
            A, B, C = (pools[f"{s}.{k}"].detach() for k in "ABC")
            out |= {f"{s}.A": A[:r], f"{s}.B": B[:, :r], f"{s}.C": C[:r, :r], n: gain}
            ranks.append((s, r))
    return replace(config, ranks=tuple(ranks) or (*config.ranks, ("*", config.target))), out


@method(
    "triadaptlora",
    TriAdaptLoRA,
    paper="TriAdaptLoRA: Brain-Inspired Triangular Adaptive Low-Rank Adaptation, arXiv 2501.08008",
    formula="sum over sites of m (d_in + d_out) + m^2 while it trains; of the r of each site alone in the file",
    lr=2e-3,
    size=("target",),
    compact=_compact,
    schedule=_schedule,
    penalty=lambda config, plan, pools: config.orthogonal * far_from_orthonormal(plan, pools, "C"),
)
def plan(sites: Sequence[Site], config: TriAdaptLoRA) -> Plan:
    """h = W0 x + alpha g B C A x, g = 1 / (r + 1e-5) by the rank r that the site has; A and C normal with deviation
    0.02, B zero at the start and at what is added.

    Shapes: A (m, d_in), C (m, m), B (d_out, m), m the most that a site can have. Linear in: each alone.
    Source: arXiv 2501.08008, and a tuner of its authors for PEFT; the paper's own start was in no source that could be
    read, and the code's, B and C both zero, cannot train: A and C drawn is ours. Differs: the lower and the upper
    triangle are one matrix, where the code has the blocks of the diagonal twice; growth ends at the target exactly.
    `adapt` and `Scheduled` let it grow; other loops train all m directions at the scale of the first ones.
    """
    pools, uses = {}, []
    for s in sites:
        r = int(pick(config.ranks, s.name, config.room))
        if not r:
            continue
        first = config.start if not config.ranks else r
        pools[f"{s.name}.A"], pools[f"{s.name}.B"] = Pool((r, s.inp), _START), Pool((s.out, r), ZEROS)
        pools[f"{s.name}.C"] = Pool((r, r), _START)
        pools[f"{s.name}.gain"] = Pool((1,), Constant(over(first)), train=False)
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}
        reads["M"] = Read(Multiplied(), (f"{s.name}.C", f"{s.name}.gain"))
        uses.append(Use(s.name, LowRank(config.alpha, config.dropout), reads))
    return Plan(pools, tuple(uses))
