"""APT: ranks are added to the half of the updates that matter most, and heads and neurons of the base that matter least
are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...bind import Pruned
from ...core import CommonweightError, Plan, Site, config, option
from ...core.bits import packed
from ...core.schedule import Edit, Moment, Pools, State, carried
from ..blocks import headed
from ..registry import method
from .apt_prune import Block, Pruning, masked
from .grown import first, limits, of_lora, ranks_of, resized, there, uniform
from .pruned import wrong_ranks


@config
class APT:
    rank: int = option(8, "rank of every site at the start", ge=1)
    times: float = option(4.0, "how many times as many numbers are trained at the end", ge=1)
    most: int | None = option(None, "rank that a site can have; none: 8 * rank", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    rounds: int = option(10, "how often ranks are added", ge=0)
    begin: float = option(0.1, "share of the steps before ranks are added", ge=0, le=1)
    end: float = option(0.5, "share of the steps, the last ones, with the final ranks", ge=0, le=1)
    beta: float = option(0.85, "how slowly the importance of a rank follows", ge=0, le=0.999)
    prune: float = option(
        0.0,
        "share of the base's numbers in heads and neurons that is left out of this tenant in the end (paper: 0.6; "
        "LLaMA: 0.3); 0: none",
        ge=0,
        le=0.99,
    )
    heads: int | None = option(None, "heads of an attention; none: as the model says; 0: all stay", ge=0)
    told: tuple[tuple[str, int], ...] = option(
        (), "(pattern, heads) pairs: what the model says, where its attentions differ", globs=True
    )
    move: float = option(0.01, "how far a mask goes in a step, before the end of its round", gt=0, le=1)
    kurtosis: bool = option(
        True,
        "with the root of the kurtosis of what a head or neuron says in its score (paper; their code: LLaMA alone)",
    )
    masks: Literal["numbers", "bits"] = option(
        "numbers", "numbers: masks that move as it trains; bits: 1 or 0, as a trained tenant keeps them"
    )
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )

    @property
    def room(self) -> int:
        return 8 * self.rank if self.most is None else self.most

    def check(self) -> str | None:
        if self.room < self.rank:
            return f"most={self.most} is less than rank={self.rank}"
        if self.begin + self.end > 1:
            return f"begin={self.begin} and end={self.end} are more than all steps"
        if self.prune and not self.rounds:
            return f"prune={self.prune} goes by rounds, and rounds is 0"
        return wrong_ranks(self.ranks)


@dataclass(frozen=True)
class Growing:
    """Score of a site: the mean over its ranks of the smoothed |sum_j A_ij dL/dA_ij|."""

    config: APT
    sites: tuple[str, ...]
    seed: int
    resizes: ClassVar[bool] = True

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.ranks:
            return {}, Edit()
        return {s: torch.zeros(r) for s, r in zip(self.sites, ranks_of(self.sites, pools).tolist())}, Edit()

    def steps_of(self, steps: int) -> list[int]:
        """The steps after which ranks are added: round i of n at i / n of the way."""
        c = self.config
        first, last = c.begin * steps, (1 - c.end) * steps
        return [max(1, round(first + (last - first) * i / c.rounds)) for i in range(1, c.rounds + 1)]

    def settled(self, step: int, steps: int) -> bool:
        return bool(self.config.ranks) or not self.config.rounds or step >= self.steps_of(steps)[-1]

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        if not state or self.settled(at.step - 1, at.steps):
            return state, Edit()
        beta, when = self.config.beta, self.steps_of(at.steps)
        mean = {}
        for s in self.sites:
            found = (at.pools[f"{s}.A"] * at.grads[f"{s}.A"]).sum(1).abs().cpu()
            mean[s] = beta * state[s].cpu() + (1 - beta) * found
        if at.step not in when:
            return mean, Edit()
        now = ranks_of(self.sites, at.pools)
        done = len([w for w in when if w <= at.step])
        widths = torch.tensor([at.pools[f"{s}.A"].shape[1] + at.pools[f"{s}.B"].shape[0] for s in self.sites])
        start = int(widths.sum()) * self.config.rank
        target = start * (1 + (self.config.times - 1) * done / self.config.rounds)
        scores = torch.stack([m.mean() for m in mean.values()])
        most = limits(self.sites, at.pools).clamp(max=self.config.room)
        ranks = self.grown(now, scores, widths, target, most)
        places = {s: first(n, r) for s, n, r in zip(self.sites, now.tolist(), ranks.tolist())}
        edit = resized(self.config, self.sites, at.pools, places, {"A": uniform}, self.seed, str(at.step))
        return {s: carried(m, (places[s],)) for s, m in mean.items()}, edit

    def grown(self, ranks: Tensor, scores: Tensor, widths: Tensor, target: float, most: Tensor) -> Tensor:
        """The better half of the sites below `most`: r becomes int(r rate), rate = (target - now) / theirs + 1."""
        order = [i for i in scores.argsort(descending=True, stable=True).tolist() if ranks[i] < most[i]]
        half = order[: (len(order) + 1) // 2]
        theirs = float((ranks * widths)[half].sum())
        more = target - float((ranks * widths).sum())
        out = ranks.clone()
        if half and more > 0:
            out[half] = torch.minimum((ranks[half] * (more / theirs + 1)).long(), most[half])
        return out


def _schedule(config: APT, plan: Plan) -> Growing | Pruning:
    growing = Growing(config, tuple(n.removesuffix(".A") for n in plan.pools if n.endswith(".A")), plan.seed)
    pruned = [(u.site, u.bind) for u in plan.uses if isinstance(u.bind, Pruned)]
    if not pruned or config.masks == "bits":
        return growing
    found = tuple(Block(n, b.parts, b.width, b.numbers) for n, b in pruned)
    return Pruning(config, growing, found, pruned[0][1].scale)


def _compact(config: APT, pools: Mapping[str, Tensor]) -> tuple[APT, dict[str, Tensor]]:
    """The ranks that are there, and masks as bits once all of them are 0 or 1."""
    found, out = there(config, pools)
    masks = [n for n in pools if n.endswith(".kept")]
    if not config.prune or any(bool(((pools[n] != 0) & (pools[n] != 1)).any()) for n in masks):
        return found, out
    for n in masks:
        out[f"{n.removesuffix('.kept')}.bits"] = packed(out.pop(n) != 0)
    return replace(found, masks="bits"), out


def _most(config: APT, sites: Sequence[Site]) -> APT:
    """So many ranks at every site, and no more numbers wherever they are."""
    found = _compact(config, {})[0]
    return replace(found, ranks=(*config.ranks, ("*", round(config.times * config.rank))))


@method(
    "apt",
    APT,
    paper="APT: Adaptive Pruning and Tuning Pretrained Language Models for Efficient Training and Inference, arXiv "
    "2401.12200",
    formula="sum over sites of r (d_in + d_out), r the rank that it has; at the end about times as much as at first; "
    "with prune a bit for each head and neuron in the file",
    lr=1e-3,
    size=("rank",),
    compact=_compact,
    ends=_most,
    schedule=_schedule,
    told=lambda config, sites, heads: headed(config, sites, heads) if config.prune else config,
)
def plan(sites: Sequence[Site], config: APT) -> Plan:
    """h = W0 x + (alpha / r0) B A x, r0 the rank at the start; A uniform, B zero at the start and at what is added.

    With prune h = (W0 + (alpha / r0) B A) (m x) behind an attention's heads and a feed-forward layer's neurons, m a
    number for each, which `Pruning` moves to 1 or 0. It is the tenant that leaves them out: others read all of the
    base, whose bytes stay, and `merged` has columns of zeros.
    Shapes: A (r, d_in), B (d_out, r), r the rank that a site has, `most` of them at the most; m (heads,) or (d_in,), in
    the end bits. Linear in: A and B, each alone. The scale does not change with the rank, so that growing changes no
    answer. Cost: with prune a second product in the masked layers, and until it ends a look at what they are given and
    at its gradient, and a pass over their weights for the kurtosis. Source: arXiv 2401.12200, sections 4.2 and 4.3;
    github.com/ROIM1998/APT, growing @56eaf8b ("tophalf_limited"), pruning @772ceee (`DensityBSMaskPruner`,
    cubic_gradual), where LLaMA's scorer alone has the kurtosis; of a neuron it is that of its column of the weight,
    whatever was said. Differs: when ranks are added and parts left out is said in shares of the run; masks move in all
    steps of a round, theirs in its last 200; padding counts for nothing. Hidden dimensions stay: a norm's mean is over
    all of them, and no mask at a tenant's layers changes that. Nothing is distilled: the teacher is another state of
    the tenant itself, behind a map that is trained, and the existing distillation has neither. `adapt` and `Scheduled`
    add ranks and leave out; other loops train the start. Raises: CommonweightError for prune without a head or neuron.
    """
    scale = (2.0 * config.rank if config.alpha is None else config.alpha) / config.rank
    found = of_lora(sites, config, config.rank, scale)
    if not found.uses:
        raise CommonweightError("apt: ranks leaves no site with a rank above 0")
    return masked(found, sites, config, scale) if config.prune else found
