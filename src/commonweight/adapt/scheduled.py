"""A tenant's schedule at work: what it says after each step is done to the pools, the optimiser and its rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError
from ..core.schedule import Edit, Moment, State
from ..host import Tenant


class Scheduled:
    """For a loop of one's own: `begin` before the first step, `masked` after each backward pass, `after` after each
    step of the optimiser, before its gradients are cleared.

    optimizer: every pool of the tenant stands in a group of its own (`alone`). rates: the scheduler of its rates, whose
    `base_lrs` are changed; None: the groups' rates themselves are. What another tenant of a common trains is not its to
    change: it sees and edits the tenant's own pools alone.
    """

    def __init__(self, tenant: Tenant, optimizer: Any, rates: Any, steps: int):
        made = tenant.method.schedule
        assert made is not None
        self.tenant, self.steps, self.rates = tenant, steps, rates
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self.schedule = made(tenant.config, tenant.plan)
        taken = tenant.common.pools if tenant.common is not None else {}
        self.pools = {n: p for n, p in tenant.named_parameters() if n not in taken}
        self.state: State = {}
        self.masks: dict[str, Tensor] = {}
        self.factors: dict[str, float] = {}
        self.first: dict[str, float] = {}  # rates before any factor
        self.resting: frozenset[str] = frozenset()
        self.begun = False

    def begin(self) -> None:
        """Nothing where a run goes on."""
        if not self.begun:
            values = {n: p.detach() for n, p in self.pools.items()}
            self.state, edit = self.schedule.begin(self.tenant.plan, values, self.steps)
            self._do(edit)
            self.begun = True

    def masked(self) -> None:
        """Numbers that are zero for good have no gradient."""
        for n, m in self.masks.items():
            if (grad := self.pools[n].grad) is not None:
                grad.mul_(m)

    @torch.no_grad()
    def after(self, step: int) -> None:
        for n, m in self.masks.items():
            self.pools[n].mul_(m)
        values = {n: p.detach() for n, p in self.pools.items()}
        grads = {n: p.grad for n, p in self.pools.items() if p.grad is not None}
        self.state, edit = self.schedule.after(
            Moment(step, self.steps, values, grads, _moments(self.optimizer, self.pools)), self.state
        )
        self._do(edit)

    def settled(self, step: int) -> bool:
        return self.schedule.settled(step, self.steps)

    @torch.no_grad()
    def _do(self, edit: Edit) -> None:
        if lost := [n for part in edit for n in part or () if n not in self.pools]:
            raise CommonweightError(f"{self.tenant.method.name}: its schedule names {lost[0]}, no pool that it trains")
        for n, v in edit.values.items():
            self.pools[n].copy_(v)
        for n, m in edit.masks.items():
            self.masks[n] = m.to(self.pools[n].dtype)
            self.pools[n].mul_(self.masks[n])
        for n, f in edit.moments.items():
            for held in self.optimizer.state.get(self.pools[n], {}).values():
                if isinstance(held, Tensor) and held.shape == self.pools[n].shape:
                    held.mul_(f)
        if edit.resting is not None:
            self._rest(edit.resting)
        if edit.rates:
            self._pace(edit.rates)

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

    def end(self) -> None:
        """All pools can be trained again."""
        self._rest(frozenset())

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers): what `restore` takes."""
        tensors = {f"state/{k}": v for k, v in self.state.items()} | {f"mask/{k}": v for k, v in self.masks.items()}
        return tensors, {"resting": sorted(self.resting), "rates": dict(self.factors)}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """rates are those of a scheduler that was made anew."""
        device = next(iter(self.pools.values())).device
        self.state = {k[6:]: v.to(device) for k, v in tensors.items() if k.startswith("state/")}
        masks = {k[5:]: v.to(device) for k, v in tensors.items() if k.startswith("mask/")}
        self._do(Edit(masks=masks, resting=frozenset(facts["resting"]), rates=facts["rates"]))
        self.begun = True


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
