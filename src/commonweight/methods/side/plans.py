"""What the side paths have in common: one use for each trunk, whose pools are its slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...address import WHOLE
from ...core import CommonweightError, Plan, Pool, Read, Site, Use


def states(site: Site) -> int:
    """How many states a trunk gives: its blocks, and what the first is given."""
    return (site.inp - 1) // site.out


def beside(name: str, sites: Sequence[Site], role: str, slots: Callable[[Site], dict[str, Pool]], bind: Any) -> Plan:
    """bind: of a site. Raises: CommonweightError where no trunk is of the role."""
    mine = [s for s in sites if s.role in (role, "")]
    if not mine:
        raise CommonweightError(
            f"{name} reads sites of kind trunk that are {role}; {sites[0].name} is {sites[0].role}. Leave sites out, "
            f"or name '*.{'early' if role == 'early' else 'trunk'}'"
        )
    pools, uses = {}, []
    for s in mine:
        made = slots(s)
        pools |= {f"{s.name}.{k}": p for k, p in made.items()}
        uses.append(Use(s.name, bind(s), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in made}))
    return Plan(pools, tuple(uses))
