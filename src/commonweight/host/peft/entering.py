"""An adapter in our words as a tenant."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...core import Plan
from ...formats.adapter import Adapter, fits
from ...methods import Beside, beside, resolve
from ...methods import plan as make_plan
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
    held: Beside = Beside(),  # noqa: B008
) -> Tenant:
    """The tenant, whole or not at all. extra: a head's plan. values: the numbers of that, and of what is held beside
    the method. apart: see `Roster.attach`."""
    method, cfg = resolve(adapter.method, adapter.options)
    wanted = set(adapter.sites)
    given = [s for s in roster.base.every if s.name in wanted]
    plan = make_plan(cfg, given)
    fits(adapter, plan)
    more = [s for s in roster.base.every if s.name in held.sites]
    plan = beside(held, more) + plan
    if extra is not None:
        plan += extra
    found = {**adapter.values, **(values or {})}
    return roster.attach(name, method, cfg, plan, labels, found, sites=given, apart=apart, beside=held, held=more)
