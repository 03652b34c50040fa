"""Light-PEFT: early in training, heads, neurons, whole updates and directions that matter least are cut, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Thinned
from ...core import ZEROS, Constant, Plan, Pool, Read, Site, Use, config, kaiming, option
from ...core.schedule import Edit, Moment, Pools, State, last_of, later_half
from ..blocks import headed, parts
from ..mixtures.losses import mean
from ..registry import method
from ..said import RouterLoss, Said
from .grown import along
from .lora import pick
from .pruned import kept, wrong_ranks

_GAUGE = 1e-3  # so small a part of the gradients that clipping does not see it


@config
class LightPEFT:
    rank: int = option(8, "directions of every site's update at the start", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.05, "dropout on the input of A, in training", ge=0, le=0.95)
    estimate: float = option(0.3333, "share of the steps before the cut; their second half scores", gt=0, le=0.9)
    l1: float = option(1e-4, "weight of the sum of |mask| in the loss before the cut", ge=0)
    heads: int | None = option(None, "heads of an attention; none: as the model says; 0: all stay", ge=0)
    cut_heads: float = option(0.3333, "share of each attention's heads that goes", ge=0, le=0.99)
    cut_neurons: float = option(0.3333, "share of all feed-forward neurons that goes", ge=0, le=0.99)
    cut_modules: float = option(0.75, "share of the updates that goes", ge=0, le=0.99)
    cut_ranks: float = option(0.5, "share of the other updates' directions that goes", ge=0, le=0.99)
    form: Literal["whole", "stored"] = option("whole", "whole: with what scores; stored: what is left, as it is kept")
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: what a trained tenant was left with", globs=True
    )
    told: tuple[tuple[str, int], ...] = option(
        (), "(pattern, heads) pairs: what the model says, where its attentions differ", globs=True
    )

    def check(self) -> str | None:
        return wrong_ranks(self.ranks)


@dataclass(frozen=True)
class Early:
    """Scores, means over the second half of the estimate's steps. Of direction i of an update: |mean_j (A gA)_ij| +
    |mean_j (B gB)_ji|; of an update: its length over that of what the layer gives; of a head and a neuron: |mask|."""

    config: LightPEFT
    sites: tuple[str, ...]
    heads: tuple[str, ...]
    neurons: tuple[str, ...]
    resizes: ClassVar[bool] = True

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.form == "stored":
            return {}, Edit()
        state = {f"rank/{s}": torch.zeros_like(pools[f"{s}.d"]) for s in self.sites}
        state |= {f"size/{s}": torch.zeros_like(pools[f"{s}.z"]) for s in self.sites}
        return state, Edit(rates={f"{s}.z": 0.0 for s in self.sites})

    def last(self, steps: int) -> int:
        return last_of(self.config.estimate, steps)

    def settled(self, step: int, steps: int) -> bool:
        return self.config.form == "stored" or step > self.last(steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        last = self.last(at.steps)
        if self.config.form == "stored" or not later_half(at.step, last):
            return state, Edit()
        state = {**state, **{k: v + self._seen(k, at) for k, v in state.items()}}
        return (state, Edit()) if at.step < last else ({}, self._cut(at.pools, state))

    def _seen(self, key: str, at: Moment) -> Tensor:
        kind, s = key.split("/", 1)
        if kind == "size":
            return (
                at.grads[f"{s}.z"].nan_to_num(0, 0, 0) if f"{s}.z" in at.grads else torch.zeros_like(at.pools[f"{s}.z"])
            )
        A, B = (at.pools[f"{s}.{k}"] * at.grads.get(f"{s}.{k}", torch.zeros(())).to(at.pools[f"{s}.{k}"]) for k in "AB")
        return (A.mean(1).abs() + B.mean(0).abs()).nan_to_num(0, 0, 0)

    def _cut(self, pools: Pools, state: State) -> Edit:
        """A plan of what is left. Masks of heads and neurons are 1 or 0, and train no more."""
        c, masks, at = self.config, {}, {}
        size = {s: state[f"size/{s}"] for s in self.sites}
        left = [s for s, yes in above(size, c.cut_modules).items() if bool(yes)]
        directions = above({s: state[f"rank/{s}"] for s in left}, c.cut_ranks)
        for s in self.sites:
            at[s] = directions[s].cpu().nonzero()[:, 0] if s in directions else torch.arange(0)
        for n in self.heads:
            masks |= {k: v.to(pools[k]) for k, v in above({n: pools[n].abs()}, c.cut_heads).items()}
        neurons = {n: pools[n].abs() for n in self.neurons}
        masks |= {k: v.to(pools[k]) for k, v in above(neurons, c.cut_neurons).items()}
        ranks = tuple((s, len(t)) for s, t in at.items())
        return Edit(values=masks, places=along(pools, at), config=replace(c, form="stored", ranks=ranks))


def above(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Which are above the quantile of all n together: n - 1 - floor(share (n - 1)) of them, at least one; of equal ones
    the first. All where the share is 0."""
    if not scores or not share:
        return {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    flat = torch.cat([s.double().flatten() for s in scores.values()])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    most = len(flat) - 1
    kept[flat.argsort(descending=True, stable=True)[: max(1, most - int(share * most))]] = True
    parts = kept.split([s.numel() for s in scores.values()])
    return {n: k.view_as(s) for (n, s), k in zip(scores.items(), parts)}


def _schedule(config: LightPEFT, plan: Plan) -> Early:
    sites = tuple(n.removesuffix(".d") for n in plan.pools if n.endswith(".d"))
    masks = [n for n in plan.pools if n.endswith((".heads", ".neurons"))]
    heads, neurons = (tuple(n for n in masks if n.endswith(k)) for k in (".heads", ".neurons"))
    return Early(config, sites, heads, neurons)


def _penalty(config: LightPEFT, plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    masks = [p for n, p in pools.items() if n.endswith((".heads", ".neurons")) and p.requires_grad]
    return config.l1 * torch.cat(masks).abs().sum() if masks else torch.zeros(())


def _gauges(said: Mapping[str, Said]) -> Tensor:
    """0, whose gradient by each gauge is a small part of the mean ratio of its site."""
    return _GAUGE * torch.stack([mean(s.logits[:, 0], s.real) for s in said.values()]).sum()


def _routing(config: LightPEFT) -> RouterLoss | None:
    return _gauges if config.form == "whole" else None


def _compact(config: LightPEFT, pools: Mapping[str, Tensor]) -> tuple[LightPEFT, dict[str, Tensor]]:
    """Directions with a d that is not zero, and the masks."""
    found, out = kept(config, {n: p for n, p in pools.items() if n.endswith((".A", ".B", ".d"))})
    masks = {n: p.detach() for n, p in pools.items() if n.endswith((".heads", ".neurons"))}
    return replace(found, form="stored"), {**out, **masks}


@method(
    "light-peft",
    LightPEFT,
    paper="Light-PEFT: Lightening Parameter-Efficient Fine-Tuning via Early Pruning, arXiv 2406.03792",
    formula="sum over sites of r (d_in + d_out) before the cut; of what is left, and the masks, in the file",
    kinds=("linear",),
    named=(),
    lr=4e-3,
    compact=_compact,
    schedule=_schedule,
    penalty=_penalty,
    routing=_routing,
    told=headed,
)
def plan(sites: Sequence[Site], config: LightPEFT) -> Plan:
    """x' = m x, y' = W x' + b + (alpha / r) B diag(d) A x'; A uniform, B zero, d = 1. m only in front of the second
    feed-forward layer, a number a neuron, and of an attention's output layer, a number a head (the same as to multiply
    its probabilities); m = 1 at the start, trained with a penalty of |m| until the cut, then 1 or 0.

    Shapes: A (r, d_in), B (d_out, r), d (r,), frozen; m (d_in,) or (heads,). Linear in: A and B, each alone. Cost: as
    LoRA, and the masked layers' products twice; it merges exactly. Source: arXiv 2406.03792; github.com/gccnlp/
    Light-PEFT @7b10c22, its scores and quantiles: of heads in each attention, of all else over the model. A and B stay
    what they were. Differs: a tenant MASKS heads and neurons of the base, which other tenants read, where the code cuts
    them out, so that nothing gets faster unless the tenant is merged and its zero columns are cut. OURS: `estimate` as
    a share of one run, where the code trains 5 epochs at most and then 10; of equal scores the first are above the
    quantile, and one always is, where the code cuts them all; an attention whose heads the model does not say keeps
    them; one rate; a gauge of value zero, whose gradient tells a schedule how long an update is;
    gradients are those after clipping, so that steps which are clipped count less. `adapt` and
    `Scheduled` cut, by a new plan of what is left; other loops train all of it.
    Raises: CommonweightError where `heads` does not divide an attention's width.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    bind, pools, uses, whole = Thinned(alpha / config.rank, config.dropout), {}, [], config.form == "whole"
    for s in sites:
        n, r, reads = s.name, int(pick(config.ranks, s.name, config.rank)), {}
        if p := parts(s, config):
            name = f"{n}.neurons" if s.role == "down" else f"{n}.heads"
            pools[name] = Pool((p,), Constant(1.0), train=whole)
            reads["m"] = Read(WHOLE, (name,))
        if r:
            pools[f"{n}.A"], pools[f"{n}.B"] = Pool((r, s.inp), kaiming(s.inp)), Pool((s.out, r), ZEROS)
            pools[f"{n}.d"] = Pool((r,), Constant(1.0), train=False)
            if whole:
                pools[f"{n}.z"] = Pool((1,), ZEROS)
            reads |= {k: Read(WHOLE, (f"{n}.{k}",)) for k in ("ABdz" if whole else "ABd")}
        if reads:
            uses.append(Use(n, bind, reads))
    return Plan(pools, tuple(uses))
