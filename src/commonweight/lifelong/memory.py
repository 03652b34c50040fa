"""Replay memory: rows of earlier tasks that a method declares to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..adapt.tasks.base import Example
from ..core import Rng

Rows = Mapping[str, Sequence[Example]]


def drawn(rows: Sequence[Example], n: int, seed: int, name: str) -> list[Example]:
    """n rows of a task, without replacement, by (seed, name) alone; by classes alike where they have some.

    A class that has too few leaves its places to the others."""
    order = Rng(seed, f"memory {name}").permutation(len(rows)).tolist()
    by_class: dict[object, list[int]] = {}
    for i in order:
        by_class.setdefault(rows[i].get("label"), []).append(i)
    queues = [by_class[k] for k in sorted(by_class, key=str)]
    out: list[int] = []
    while len(out) < n and any(queues):
        for q in queues:
            if q and len(out) < n:
                out.append(q.pop(0))
    return [rows[i] for i in sorted(out)]


def kept(had: Rows, rows: Sequence[Example], n: int, seed: int, name: str) -> dict[str, Sequence[Example]]:
    """The memory with a further task's rows in it."""
    return {**had, name: drawn(rows, n, seed, name)} if n else dict(had)
