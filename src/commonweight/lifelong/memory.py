"""Replay memory: rows of earlier tasks that a method declares to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..adapt.tasks.base import HELD, Example
from ..core import CommonweightError, Rng

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
    """The memory with a further task's rows in it. Raises: CommonweightError for images or sounds that are no files:
    a store keeps the paths of files alone."""
    if not n:
        return dict(had)
    if any(not isinstance(r.get(HELD, ""), str) for r in rows):
        raise CommonweightError(
            f"{name}: a memory keeps rows of images or sounds by the paths of their files, and these hold the files "
            "themselves; write them into a folder, or take a method without a memory"
        )
    return {**had, name: drawn(rows, n, seed, name)}
