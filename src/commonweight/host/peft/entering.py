"""An adapter in our words as a tenant."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...core import Plan
from ...formats.adapter import Adapter, fits
from ...methods import plan as make_plan
from ...methods import resolve
from ..roster import Roster
from ..tenant import Tenant


def enter(
    roster: Roster,
    name: str,
    adapter: Adapter,
    labels: tuple[str, ...] | None = None,
    extra: Plan | None = None,
    values: Mapping[str, Tensor] | None = None,
    apart: bool = False,
) -> Tenant:
    """The tenant, whole or not at all. extra, values: a head's plan and numbers. apart: see `Roster.attach`."""
    method, cfg = resolve(adapter.method, adapter.options)
    wanted = set(adapter.sites)
    given = [s for s in roster.base.every if s.name in wanted]
    plan = make_plan(cfg, given)
    fits(adapter, plan)
    if extra is not None:
        plan += extra
    found = {**adapter.values, **(values or {})}
    return roster.attach(name, method, cfg, plan, labels, found, sites=given, apart=apart)
