"""A tenant's schedule at work: what it says after each step is done to the pools, the optimiser and its rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError, build, dump
from ..core.schedule import NONE, Counting, Edit, Moment, Places, Pools, Schedule, State, Watching, resizing
from ..host import Tenant
from ..host.heard import Heard
from .following import POINTS, fitted, nowhere, replan
from .processes import summed


class Scheduled:
    """For a loop of one's own: `begin` before the first step, `masked` after each backward pass, `after` after each
    step of the optimiser, before its gradients are cleared.

    optimizer: every pool of the tenant stands in a group of its own (`alone`). rates: the scheduler of its rates, whose
    `base_lrs` are changed; None: the groups' rates themselves are. schedule: in place of its method's. What another
    tenant of a common trains is not its to change: it sees and edits the tenant's own pools alone; but for a
    schedule that is given with the run, which knows who trains beside.
    """

    def __init__(self, tenant: Tenant, optimizer: Any, rates: Any, steps: int, schedule: Schedule | None = None):
        self.tenant, self.steps, self.rates = tenant, steps, rates
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self.whole = schedule is not None
        if schedule is None:
            schedule = tenant.method.scheduled(tenant.config, tenant.plan)
        assert schedule is not None
        self.schedule = schedule
        self.counts, self.step = isinstance(schedule, Counting), 0
        self._look()
        self.state: State = {}
        self.masks: dict[str, Tensor] = {}
        self.held: dict[str, tuple[Tensor, Tensor]] = {}  # (where, the numbers)
        self.factors: dict[str, float] = {}
        self.first: dict[str, float] = {}  # rates before any factor
        self.resting: frozenset[str] = frozenset()
        self.begun = False
        self.counted: dict[str, Tensor] = {}  # of the step's passes so far

    def _look(self) -> None:
        """The pools that it sees and edits, as the tenant has them now."""
        taken = {} if self.whole or self.tenant.common is None else self.tenant.common.pools
        specs = self.tenant.plan.pools.items()
        self.pools = {n: p for n, p in self.tenant.named_parameters() if n not in taken}
        self.frozen = {n: self.tenant.pools[n] for n, p in specs if p.save and not p.train and n not in taken}

    def begin(self) -> bool:
        """Nothing where a run goes on. Gives what `after` gives."""
        if self.begun:
            return False
        self.state, edit = self.schedule.begin(self.tenant.plan, self._values(), self.steps)
        moved = self._do(edit)
        self._now(edit.rates)
        self.begun = True
        return moved

    def masked(self) -> None:
        """Numbers that are zero for good, or held, have no gradient."""
        for n, m in (*self.masks.items(), *((n, ~m) for n, (m, _) in self.held.items())):
            if (grad := self.pools[n].grad) is not None:
                grad.mul_(m)

    def watch(self, heard: Heard, idle: bool = False) -> None:
        """Before each pass within `host.listening()`, for a `Watching` one. idle: its rows count for nothing."""
        if isinstance(watching := self._watching, Watching):
            for n, zeros in watching.blank(self._values()).items():
                self.counted.setdefault(n, zeros)
            if not idle:
                heard.watch(self.tenant, self._sums(watching.states), self._sums(watching.grads))

    @property
    def _watching(self) -> Schedule | None:
        """The schedule, while it is shown states."""
        watches = isinstance(self.schedule, Watching) and not self.settled(self.step)
        return self.schedule if watches else None

    def _sums(self, made: Callable[[str, Tensor, Tensor], Pools]) -> Callable[[str, Tensor, Tensor], None]:
        def add(site: str, found: Tensor, real: Tensor) -> None:
            with torch.no_grad():
                self._add(made(site, found, real))

        return add

    def _add(self, found: Pools) -> None:
        for n, c in found.items():
            self.counted[n] = self.counted[n] + c if n in self.counted else c

    @torch.no_grad()
    def hear(self, heard: Heard, idle: bool = False) -> None:
        """After each pass within `host.listening()`, where `counts`. idle: its rows count for nothing."""
        if isinstance(self.schedule, Counting):
            said = {n: (s.logits.detach(), s.real) for n, s in ({} if idle else heard.said(self.tenant)).items()}
            self._add(self.schedule.count(said, self._values()))

    def _counts(self) -> dict[str, Tensor]:
        """Of the step, over all processes."""
        if (self.counts or self._watching) and not self.counted:
            what, when = ("counts what its routers chose", "..., then Scheduled.hear(heard)")
            if not self.counts:
                what, when = "is shown states and their gradients", "Scheduled.watch(heard), then ..."
            raise CommonweightError(
                f"{self.tenant.method.name}: its schedule {what}, and nobody listened in this step: with "
                f"host.listening() as heard: {when}, around each pass"
            )
        found, self.counted = self.counted, {}
        return dict(zip(found, summed([*found.values()])))

    def _values(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in {**self.pools, **self.frozen}.items()}

    @torch.no_grad()
    def after(self, step: int, loss: Callable[[], float] | None = None) -> bool:
        """loss: of rows, for schedules that compare what they might do; always of the same ones in one call.

        Gives whether the tenant has a new plan, and other tensors: the optimizer holds them already, a module of
        `Host.module` must be told (`renew`), and what wraps that, such as DistributedDataParallel, be made anew."""
        for n, m in self.masks.items():
            self.pools[n].mul_(m)
        for n, (m, value) in self.held.items():
            self.pools[n].copy_(torch.where(m, value, self.pools[n]))
        grads = {n: p.grad for n, p in self.pools.items() if p.grad is not None}
        at = Moment(step, self.steps, self._values(), grads, _moments(self.optimizer, self.pools))
        at = at._replace(counted=self._counts())
        self.step = step
        base = None if self.tenant.base is None else self.tenant.base()
        if base is not None:
            at = at._replace(weight=base.weight)
        if loss is not None:
            at = at._replace(loss=lambda values: self._if(values, loss))
        self.state, edit = self.schedule.after(at, self.state)
        return self._do(edit)

    @torch.no_grad()
    def _if(self, values: Pools, loss: Callable[[], float]) -> float:
        """The loss with other values in some pools, which are then put back."""
        pools = {**self.pools, **self.frozen}
        before = {n: pools[n].detach().clone() for n in values}
        for n, v in values.items():
            pools[n].copy_(v)
        try:
            return loss()
        finally:
            for n, v in before.items():
                pools[n].copy_(v)

    def settled(self, step: int) -> bool:
        return self.schedule.settled(step, self.steps)

    @torch.no_grad()
    def _do(self, edit: Edit) -> bool:
        """Whether the tenant's tensors are others now."""
        if moved := edit.config is not None:
            if not resizing(self.schedule):
                raise CommonweightError(
                    f"{self.tenant.method.name}: its schedule made a new plan, and does not say that it does: "
                    "resizes = True in its class"
                )
            self._replan(edit.config, edit.places, edit.values)
        known = {**self.pools, **self.frozen}
        lost = [n for n in edit.values if n not in known]
        parts = edit.masks, edit.resting or (), edit.rates, edit.moments, edit.held
        if lost := lost + [n for part in parts for n in part if n not in self.pools]:
            raise CommonweightError(f"{self.tenant.method.name}: its schedule names {lost[0]}, no pool that it trains")
        for n, v in edit.values.items():
            known[n].copy_(v)
        for n, m in edit.masks.items():
            self.masks[n] = m.to(self.pools[n].dtype)
            self.pools[n].mul_(self.masks[n])
        for n, m in edit.held.items():
            self.held[n] = m.to(self.pools[n].device).bool(), self.pools[n].detach().clone()
        for n, f in edit.moments.items():
            for k, held in self.optimizer.state.get(self.pools[n], {}).items():
                if isinstance(held, Tensor) and held.shape == self.pools[n].shape and k not in POINTS:
                    held.mul_(f)
        if edit.resting is not None:
            self._rest(edit.resting)
        if edit.rates:
            self._pace(edit.rates)
        return moved

    def reshape(self, config: Any) -> bool:
        """The tenant by another config that it had, or will have: pools of another shape hold zeros, to be filled."""
        if config == self.tenant.config:
            return False
        self._replan(config, nowhere(self.tenant, config), again=True)
        return True

    def _replan(self, config: Any, places: Mapping[str, Places], first: Pools = NONE, again: bool = False) -> None:
        replan(self.tenant, self.optimizer, self.rates, config, places, first, again)
        self._look()
        self.masks = {n: fitted(m, places.get(n), 1) for n, m in self.masks.items() if n in self.pools}
        self.held = {
            n: (fitted(m, places.get(n), 0), fitted(v, places.get(n), 0))
            for n, (m, v) in self.held.items() if n in self.pools
        }  # fmt: skip
        self.factors = {n: f for n, f in self.factors.items() if n in self.pools}
        self._rest(self.resting & self.pools.keys())

    def _rest(self, names: frozenset[str]) -> None:
        self.resting = names
        for n, p in self.pools.items():
            p.requires_grad_(n not in names)
            if n in names:
                p.grad = None

    def _pace(self, factors: Mapping[str, float]) -> None:
        at = {id(p): n for n, p in self.pools.items()}
        for i, group in enumerate(self.optimizer.param_groups):
            n = at.get(id(group["params"][0]))
            if n is None or n not in factors:
                continue
            if self.rates is None:
                group["lr"] = self.first.setdefault(n, group["lr"]) * factors[n]
            else:
                self.rates.base_lrs[i] = self.first.setdefault(n, self.rates.base_lrs[i]) * factors[n]
            self.factors[n] = factors[n]

    def _now(self, factors: Mapping[str, float]) -> None:
        """For the first step, whose rates were set before the schedule began."""
        mine = {id(self.pools[n]): f for n, f in factors.items()} if self.rates is not None else {}
        for group in self.optimizer.param_groups if mine else ():
            group["lr"] *= mine.get(id(group["params"][0]), 1.0)

    def end(self) -> None:
        """All pools can be trained again."""
        self._rest(frozenset())

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers): what `restore` takes."""
        tensors = {f"state/{k}": v for k, v in self.state.items()} | {f"mask/{k}": v for k, v in self.masks.items()}
        tensors |= {f"pool/{k}": v for k, v in self.frozen.items()} | {
            f"held/{k}": m for k, (m, _) in self.held.items()
        }
        return tensors, {
            "resting": sorted(self.resting), "rates": dict(self.factors), "config": said(self.tenant.config),
        }  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """rates are those of a scheduler that was made anew."""
        if "config" in facts:
            self.reshape(build(type(self.tenant.config), facts["config"]))
        device = next(iter(self.pools.values())).device
        self.state = {k[6:]: v.to(device) for k, v in tensors.items() if k.startswith("state/")}
        masks = {k[5:]: v.to(device) for k, v in tensors.items() if k.startswith("mask/")}
        values = {k[5:]: v for k, v in tensors.items() if k.startswith("pool/")}
        held = {k[5:]: v for k, v in tensors.items() if k.startswith("held/")}
        resting, rates = frozenset(facts["resting"]), facts["rates"]
        self.masks, self.held = {}, {}
        self._do(Edit(values=values, masks=masks, resting=resting, rates=rates, held=held))
        self.begun = True


def said(config: Any) -> dict[str, Any]:
    """A config as JSON has it; `core.build` reads it."""
    return {k: v for k, v in dump(config).items() if k != "is"}


def _moments(optimizer: Any, pools: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    out: dict[str, dict[str, Tensor]] = {}
    for n, p in pools.items():
        for k, v in (optimizer.state.get(p) or {}).items():
            if isinstance(v, Tensor) and v.shape == p.shape:
                out.setdefault(k, {})[n] = v
    return out


def alone(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of one pool each, so that each has a rate of its own."""
    return [{**g, "params": [p]} for g in groups for p in g["params"]]
