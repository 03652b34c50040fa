"""Diff pruning: a difference of every weight, whose gates close while it trains, so that few numbers are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...bind.low_rank import each
from ...core import ZEROS, Base, Constant, Plan, Pool, Read, Site, Use, config, option, serial
from ...core.schedule import Edit, Moment, Pools, State, last_of
from ..registry import method
from .fish import FISH
from .fish import plan as sparse

LIMIT = 1.5  # gates are cut from between -LIMIT and LIMIT
OPEN = 30.0  # a gate that no draw closes
GATES = (".a", ".t")


@config
class DiffPruning:
    start: float = option(5.0, "what every gate's logit begins with")
    penalty: float = option(2.5e-8, "weight of the sum of gates' probabilities to be open in the loss", ge=0)
    rate: float = option(
        0.1, "learning rate of the gates where that of the differences is 1e-4; else in proportion", gt=0
    )
    find: float = option(0.5, "share of the steps that train the gates; the rest trains what they left", ge=0, le=1)
    noise: bool = option(True, "gates are drawn in training")
    form: Literal["whole", "stored"] = option("whole", "whole: every weight has its numbers; stored: those left alone")
    kept: tuple[tuple[str, int], ...] = option((), "with form=stored: (site, number of its entries) pairs")

    def check(self) -> str | None:
        if self.kept and self.form == "whole":
            return "kept goes with form='stored', which a trained tenant has"
        return None


def gate(a: Tensor, draw: bool = False) -> Tensor:
    """Hard concrete, of any shape: clamp(3 s - 1.5, 0, 1), s = sigmoid(a), in training sigmoid(a + logit u)."""
    if draw:
        a = a + torch.rand_like(a).clamp(1e-4, 1 - 1e-4).logit()
    return (2 * LIMIT * a.sigmoid() - LIMIT).clamp(0, 1)


@serial
@dataclass(frozen=True)
class HardConcrete:
    """w' = w + z(t) z(a) dw, z as in `gate`, with draws in training where there is noise. Shapes: dw and a (d_out,
    d_in), t (). Linear in: dw. Cost: as a second layer of full size, and a draw for each of its numbers."""

    noise: bool = True
    precise: ClassVar[bool] = True  # gates are worked out in float32

    def change(self, dw: Tensor, a: Tensor, t: Tensor, draw: bool = False) -> Tensor:
        return gate(t, draw)[..., None, None] * gate(a, draw) * dw

    def weight(self, w: Tensor, dw: Tensor, a: Tensor, t: Tensor) -> Tensor:
        return w + self.change(dw, a, t).to(w.dtype)

    def output(self, x: Tensor, y: Tensor, base: Base, dw: Tensor, a: Tensor, t: Tensor) -> Tensor:
        return y + F.linear(x, self.change(dw, a, t, self.noise and base.training).to(x.dtype))

    def grouped(self, x: Tensor, y: Tensor, base: Base, dw: Tensor, a: Tensor, t: Tensor) -> Tensor:
        return y + each(x, self.change(dw, a, t, self.noise and base.training).to(x.dtype))


def trained(pools: Pools, site: str) -> Tensor:
    """The change of a site's weight, as it is measured."""
    return HardConcrete().change(pools[f"{site}.dw"], pools[f"{site}.a"], pools[f"{site}.t"])


@dataclass(frozen=True)
class Found:
    """After a share of the steps: what is not zero stays, its gates open for good; what is zero stays it."""

    share: float
    sites: tuple[str, ...]

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return {}, Edit()

    def last(self, steps: int) -> int:
        return last_of(self.share, steps)

    def settled(self, step: int, steps: int) -> bool:
        return step > self.last(steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        if at.step != self.last(at.steps):
            return state, Edit()
        left = {f"{n}.dw": (trained(at.pools, n) != 0).to(at.pools[f"{n}.dw"].dtype) for n in self.sites}
        gates = [f"{n}{k}" for n in self.sites for k in GATES]
        opened = {n: torch.full_like(at.pools[n], OPEN) for n in gates}
        return state, Edit(values=opened, masks=left, resting=frozenset(gates))


def _schedule(config: DiffPruning, plan: Plan) -> Found | None:
    mine = tuple(u.site for u in plan.uses if isinstance(u.bind, HardConcrete))
    return Found(config.find, mine) if config.form == "whole" else None


def _penalty(config: DiffPruning, plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    """Of gates that are still trained."""
    gates = [p for n, p in pools.items() if n in plan.pools and n.endswith(GATES) and p.requires_grad]
    return config.penalty * torch.stack([g.sigmoid().sum() for g in gates]).sum() if gates else torch.zeros(())


def _compact(config: DiffPruning, pools: Mapping[str, Tensor]) -> tuple[DiffPruning, dict[str, Tensor]]:
    """The entries whose change is not zero."""
    if config.form == "stored":
        return config, dict(pools)
    out = {n: p for n, p in pools.items() if not n.endswith((".dw", *GATES))}
    kept = []
    for site in [n.removesuffix(".dw") for n in pools if n.endswith(".dw")]:
        change = trained(pools, site).detach().flatten()
        if len(at := change.nonzero()[:, 0]):
            out |= {f"{site}.v": change[at], f"{site}.places": at.int()}
            kept.append((site, len(at)))
    return replace(config, form="stored", kept=tuple(kept)), out


@method(
    "diff-pruning",
    DiffPruning,
    paper="Efficient Computation Sharing for Multi-Task Visual Scene Understanding, ICCV 2023, arXiv 2303.09663",
    formula="sum over sites of 2 d_in d_out + 1 while it trains; what is left in the file, and a place (4 bytes) each",
    kinds=("linear", "expert"),
    lr=1e-4,
    size=(),
    compact=_compact,
    schedule=_schedule,
    penalty=_penalty,
)
def plan(sites: Sequence[Site], config: DiffPruning) -> Plan:
    """w' = w + z(t) z(a) dw; z hard concrete, a gate a for every number and t for every matrix; dw zero at the start.

    Loss + penalty (sum sigmoid(a) + sum sigmoid(t)). After `find` of the steps the entries whose change is zero are
    left out for good, and the others trained on with open gates. Linear in: dw. Cost: a second layer of full size, and
    three numbers a weight while it trains; the file has what is left, as `fish`. Source: arXiv 2303.09663;
    github.com/sarashoouri/EfficientMTL @6946429, the weights' half (its steps 1 and 2), by its own code; the loss of
    the task counts twice there, here the penalty half. Differs: both steps are parts of one run, where `find` is ours,
    and so is the rate of dw; weights of the sites alone, norms and biases by their own methods; no decay of gates but
    the run's own. Not built: activations taken over from the base's pass. At these constants gates take some thousands
    of steps to close: raise `penalty`, or lower `start`, for less.
    """
    if config.form == "stored":
        return sparse(sites, FISH(ratio=1.0, start="given", kept=config.kept)) if config.kept else Plan({}, ())
    pools, uses = {}, []
    logit = Constant(config.start)
    for s in sites:
        mine = {
            "dw": Pool((s.out, s.inp), ZEROS), "a": Pool((s.out, s.inp), logit, lr=config.rate / 1e-4),
            "t": Pool((), logit, lr=config.rate / 1e-4),
        }  # fmt: skip
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, HardConcrete(config.noise), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
