"""Two-stage tuning: the norms first, then the channels by which the loss would change most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import ChannelMix, ScaleOutput, Shift
from ...core import ZEROS, Constant, Plan, Pool, Read, Site, Use, config, option
from ...core.schedule import Edit, Moment, Pools, State, last_of, later_half
from ..low_rank.lori import Places
from ..registry import method


@config
class TwoStage:
    ratio: float = option(0.125, "share of a site's output channels that the second stage changes", gt=0, le=1)
    first: float = option(
        0.3, "share of the steps that tune the norms; their second half scores channels", gt=0, le=0.9
    )
    form: Literal["whole", "stored"] = option(
        "whole", "whole: with the gates that score channels; stored: without, as a trained tenant is"
    )

    def channels(self, site: Site) -> int:
        return max(1, round(self.ratio * site.out))


@dataclass(frozen=True)
class Stages:
    """First the norms train, beside gates g = 1 that do not move: the gradient of g_c is sum_tokens h_c dL/dh_c, the
    first term of what the loss would change by without channel c. Then its largest sums of |.| choose the channels, and
    what changes these trains alone."""

    config: TwoStage
    norms: tuple[str, ...]
    sites: tuple[str, ...]
    mixes: tuple[str, ...]

    @property
    def gates(self) -> list[str]:
        return [f"{s}.g" for s in self.sites]

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.form == "stored":
            return {}, Edit(resting=frozenset(self.norms))
        edit = Edit(resting=frozenset(self.mixes), rates=dict.fromkeys(self.gates, 0.0))
        return {f"score/{n}": torch.zeros_like(pools[n]) for n in self.gates}, edit

    def last(self, steps: int) -> int:
        return last_of(self.config.first, steps)

    def settled(self, step: int, steps: int) -> bool:
        return self.config.form == "stored" or step > self.last(steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        last = self.last(at.steps)
        if self.config.form == "stored" or not later_half(at.step, last):
            return state, Edit()
        seen = {n: state[f"score/{n}"] + at.grads[n].abs() for n in self.gates if n in at.grads}
        state = {**state, **{f"score/{n}": s for n, s in seen.items()}}
        if at.step < last:
            return state, Edit()
        values = {f"{s}.at": largest(state[f"score/{s}.g"], len(at.pools[f"{s}.at"])) for s in self.sites}
        return {}, Edit(values=values, resting=frozenset((*self.norms, *self.gates)))


def largest(score: Tensor, k: int) -> Tensor:
    """The places of the k largest, in order; of equal ones the first."""
    return score.argsort(descending=True, stable=True)[:k].sort().values.int()


def _schedule(config: TwoStage, plan: Plan) -> Stages:
    sites = tuple(n.removesuffix(".at") for n in plan.pools if n.endswith(".at"))
    mixes = tuple(n for s in sites for n in (f"{s}.M", f"{s}.m") if n in plan.pools)
    return Stages(config, tuple(n for n in plan.pools if n.endswith((".dw", ".db"))), sites, mixes)


def _compact(config: TwoStage, pools: Mapping[str, Tensor]) -> tuple[TwoStage, dict[str, Tensor]]:
    """Without the gates, where none has moved."""
    gates = [n for n in pools if n.endswith(".g")]
    if any(bool((pools[n] != 1).any()) for n in gates):
        return config, dict(pools)
    return replace(config, form="stored"), {n: p for n, p in pools.items() if n not in gates}


@method(
    "two-stage",
    TwoStage,
    paper="Revisit Parameter-Efficient Transfer Learning: A Two-Stage Paradigm, arXiv 2303.07910",
    formula="sum over norms of d, or 2 d with a bias, and over sites of k^2 + k, k = ratio d_out; 4 k bytes more",
    kinds=("norm", "linear"),
    named=(),
    roles=("attn_out", ""),
    lr=3e-3,
    size=("ratio",),
    compact=_compact,
    schedule=_schedule,
)
def plan(sites: Sequence[Site], config: TwoStage) -> Plan:
    """gain' = gain + dw and bias' = bias + db at norms; then y'[c] = y[c] + M y[c] + m at the k channels c of a layer's
    output whose Taylor score is largest. dw, db, M and m are zero at the start, c is drawn until it is chosen.

    Shapes: dw, db (d,), M (k, k), m (k,), which only a layer with a bias has, c (k,), gates (d_out,) while it trains.
    Linear in: each of dw, db, M and m. Source: arXiv 2303.07910, of which ONLY THE ABSTRACT could be read: norms first,
    a Taylor score of channels, then a small share of them alone. OURS, in no source that we know: the score's form,
    |sum of h dL/dh over a step's tokens|, summed over the steps of the second half of the first stage; that it is of an
    attention's output layer; M, which is the same authors' SCT, with its share of channels; the share of steps `first`;
    and one rate for both stages. `adapt` and `Scheduled` go through the stages; other loops train all of it at once,
    with the drawn channels and with the gates.
    """
    pools, uses = {}, []
    for s in sites:
        if s.kind == "norm":
            slots = ("dw", "db") if s.bias else ("dw",)
            pools |= {f"{s.name}.{slot}": Pool((s.out,), ZEROS) for slot in slots}
            uses.append(Use(s.name, Shift(), {slot: Read(WHOLE, (f"{s.name}.{slot}",)) for slot in slots}))
            continue
        n, k = s.name, config.channels(s)
        if config.form == "whole":
            pools[f"{n}.g"] = Pool((s.out,), Constant(1.0))
            uses.append(Use(n, ScaleOutput(), {"l": Read(WHOLE, (f"{n}.g",))}))
        pools[f"{n}.M"] = Pool((k, k), ZEROS)
        pools[f"{n}.at"] = Pool((k,), Places(s.out), train=False, dtype="int32")
        slots = ("M", "at", "m") if s.bias else ("M", "at")
        if s.bias:
            pools[f"{n}.m"] = Pool((k,), ZEROS)
        uses.append(Use(n, ChannelMix(), {slot: Read(WHOLE, (f"{n}.{slot}",)) for slot in slots}))
    return Plan(pools, tuple(uses))
