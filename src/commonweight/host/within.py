"""The projections of a trunk's blocks and the table before them, for methods that begin as a smaller copy of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core import CommonweightError, Site
from .sites import input_table, towers

if TYPE_CHECKING:
    from .hooked import HookedModel

ROLES = "query", "key", "value", "attn_out", "up", "down"


def within(base: HookedModel, trunks: Sequence[Site]) -> dict[str, tuple[Site, int]]:
    """What of each trunk is named how: "trunk[3].query" the first such projection of its block 3, "trunk[table]" the
    table of input tokens where it is of its tower and width. With each how often its rows stand for one another: a key
    of grouped heads is read by so many queries.

    Raises: CommonweightError for a block without one of the roles.
    """
    named = {s.name: s for s in base.every}
    table, tower = input_table(base.model, base.modules), towers(base.model)
    out: dict[str, tuple[Site, int]] = {}
    for trunk in trunks:
        home = trunk.name.rpartition(".")[0]
        if table is not None and named[table].out == trunk.out and tower(table) == tower(trunk.name):
            out[f"{trunk.name}[table]"] = named[table], 1
        mine = [s.name for s in base.every if s.kind == "block" and s.name.rpartition(".")[0] == home]
        for i, block in enumerate(mine):
            inside = [s for s in base.every if s.kind == "linear" and s.name.startswith(f"{block}.")]
            first = {s.role: s for s in reversed(inside)}
            if lost := [r for r in ROLES if r not in first]:
                there = ", ".join(s.name.removeprefix(f"{block}.") for s in inside) or "no linear layers"
                raise CommonweightError(
                    f"{block}: no single layer is its {lost[0]} (it has {there}), so that nothing can begin as a "
                    "smaller copy of it; take start='random'"
                )
            q, k, v, o, up, down = (first[r] for r in ROLES)
            if q.out % k.out or k.out != v.out or o.inp != q.out or down.inp != up.out:
                shapes = ", ".join(f"{r} {first[r].out} x {first[r].inp}" for r in ROLES)
                raise CommonweightError(
                    f"{block}: its projections do not follow one another ({shapes}), so that nothing can begin as a "
                    "smaller copy of them; take start='random'"
                )
            for r in ROLES:
                groups = first["query"].out // first[r].out if r in ("key", "value") else 1
                out[f"{trunk.name}[{i}].{r}"] = first[r], groups
    return out


def head_width(base: HookedModel, site: Site) -> int:
    """The width of a key's head. Raises: CommonweightError where the attention does not say it."""
    near = [s for s in base.every if s.kind == "prefix" and site.name.startswith(s.name.removesuffix("prefix"))]
    if not near:
        raise CommonweightError(f"{site.name}: the width of its heads is not known here; take start='random'")
    return near[0].inp
