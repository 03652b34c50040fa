"""What a recipe's rules say of a tensor: they are gone through in their order, and later ones win."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..schema.types import Recipe, Rule
from ..sources.at import block


class Ruled(NamedTuple):
    """rules: those for the tensor. method none: the recipe's. by: the rule that had the last word of what becomes of it
    (merged by a method, taken, dropped); options and weights alone decide nothing of that.
    """

    rules: tuple[Rule, ...]
    method: str | None = None
    take: str | None = None
    drop: bool = False
    by: Rule | None = None


def ruled(recipe: Recipe, name: str) -> Ruled:
    """name: in the result. `drop: false` undoes an earlier drop; a method or a take undoes both."""
    depth = block(name)
    out = Ruled(tuple(r for r in recipe.rules if r.select.holds(name, depth)))
    for rule in out.rules:
        if rule.method is not None:
            out = out._replace(method=rule.method, take=None, drop=False, by=rule)
        elif rule.take is not None:
            out = out._replace(take=rule.take, drop=False, by=rule)
        elif rule.drop is not None:
            out = out._replace(drop=rule.drop, by=rule)
    return out


def idle(recipe: Recipe, found: Iterable[Ruled]) -> list[str]:
    """A notice for every rule that changes no tensor of the result."""
    matched: set[int] = set()
    used: set[int] = set()
    for one in found:
        merged = not one.drop and one.take is None
        matched.update(map(id, one.rules))
        used.update(id(r) for r in one.rules if r is one.by or (merged and (r.settings or r.weights is not None)))
    out = []
    for i, rule in enumerate(recipe.rules):
        if id(rule) not in matched:
            out.append(f"rules[{i}] is for no tensor: {_said(rule)}")
        elif id(rule) not in used:
            out.append(f"rules[{i}] changes nothing: other rules decide on all of its tensors")
    return out


def _said(rule: Rule) -> str:
    """The selection in the recipe's words."""
    layers = ",".join(f"{a}-{b}" if a != b else str(a) for a, b in rule.select.layers)
    said = [f"tensors {', '.join(rule.select.patterns)}"] if rule.select.patterns else []
    return " in ".join([*said, f"layers {layers}"] if layers else said)
