"""Which unit stands at which depth, and which layers of the original fill it: the maps that methods share."""

from __future__ import annotations

import numpy as np

from ..core import CommonweightError, Rng

ORDERS = ("cycle", "sequence", "middle_cycle", "middle_sequence")
INITS = ("stepwise", "average", "lower", "upper", "random")


def spaced(first: int, last: int, n: int) -> list[int]:
    """n whole numbers from first to last at equal steps: round(linspace(first, last, n))."""
    return np.round(np.linspace(first, last, n)).astype(int).tolist()


def kept(depth: int, units: int, loops: int, middle: bool) -> list[int]:
    """The layers that stay where `units` loops do not fill the depth."""
    if middle:
        inner = list(range(1, depth - 1)) if units * loops == depth - 2 else spaced(1, depth - 2, units * loops)
        return [0, *inner, depth - 1]
    return list(range(depth)) if units * loops == depth else spaced(0, depth - 1, units * loops)


def units_of(depth: int, loops: int, order: str, name: str = "recursive") -> int:
    """K, the number of units. Raises: CommonweightError where there is none."""
    inner = depth - 2 if order.startswith("middle") else depth
    if inner // loops < 1:
        between = " between the ends" if order.startswith("middle") else ""
        most = max(0, inner)
        raise CommonweightError(f"{name}: loops={loops} of {most} layers{between} leave no unit; at most {most} loops")
    return inner // loops


def unit_at(place: int, units: int, loops: int, order: str) -> int:
    """The unit at a place among the looped ones."""
    return place % units if order.endswith("cycle") else place // loops


def fillers(unit: int, units: int, loops: int, order: str, init: str, seed: int = 0) -> tuple[int, ...]:
    """The places among the looped layers whose mean a unit begins with.

    stepwise: at equal steps, first and last kept. average: all that it replaces. lower, upper: the first, the last
    ones. random: drawn, in order. Source: arXiv 2410.20672, section 3.1, as the authors' code has it.
    """
    n = units * loops
    if init == "average":
        return tuple(p for p in range(n) if unit_at(p, units, loops, order) == unit)
    if init == "stepwise":  # counted from the model's first layer: halves are rounded to even numbers
        first = int(order.startswith("middle"))
        return (spaced(first, first + n - 1, units)[unit] - first,)
    if init == "random":
        return (sorted(Rng(seed, "share/units").permutation(n)[:units].tolist())[unit],)
    return (unit if init == "lower" else n - units + unit,)
