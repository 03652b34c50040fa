"""Where tokens of a tenant can be read beside an attention: its projections of keys and values are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...core import Site
from . import linear
from .found import Found
from .physical import Physical
from .prefix import Ahead
from .roles import role


class Aside(Physical):
    """heads: of queries; keys, values: the attention's frozen projections; shape: (heads of keys, width of one)."""

    forms = "none"

    def __init__(self, name: str, ahead: Ahead, heads: int, keys: Physical, values: Physical):
        super().__init__(name, ahead.module, "aside", False)
        self.heads, self.keys, self.values, self.shape = heads, keys, values, (ahead.heads, ahead.width)
        self.joins = ahead.name  # the prefix site of the same attention
        self.flagging = ahead

    @property
    def flagged(self):
        return self.flagging.flagged


def find(ahead: Sequence[Found], modules: Mapping[str, Physical]) -> list[Found]:
    """One beside each prefix site whose attention has one projection of keys and one of values, or GPT-2's of all."""
    out: list[Found] = []
    for found in ahead:
        at = found.at
        assert isinstance(at, Ahead)
        home = at.name.removesuffix("prefix")
        inside = {n: m for n, m in modules.items() if n.startswith(home) and m.kind == "linear"}
        parts = _parts(at, inside)
        if parts is None:
            continue
        heads, inp, keys, values = parts
        name = f"{home}aside"
        site = Site(name, heads, inp, "aside", found.site.role, False)
        out.append(Found(Aside(name, at, heads, keys, values), site, found.default))
    return out


def _parts(at: Ahead, inside: Mapping[str, Physical]) -> tuple[int, int, Physical, Physical] | None:
    """(heads of queries, width that is read, projection of keys, of values)."""
    shapes = {n: s for n, m in inside.items() if (s := linear.shape(m.module)) is not None}
    by = {r: [n for n in shapes if role(n) == r] for r in ("query", "key", "value", "qkv")}
    whole = at.heads * at.width
    if all(len(by[r]) == 1 for r in ("query", "key", "value")):
        q, k, v = (by[r][0] for r in ("query", "key", "value"))
        if shapes[k][:2] == shapes[v][:2] and shapes[k][0] == whole:
            return shapes[q][0] // at.width, shapes[k][1], inside[k], inside[v]
    if len(by["qkv"]) == 1 and (n := by["qkv"][0]).endswith("c_attn") and shapes[n][0] == 3 * whole:
        keys, values = (inside[n].rows((i * whole, (i + 1) * whole)) for i in (1, 2))
        return at.heads, shapes[n][1], keys, values
    return None
