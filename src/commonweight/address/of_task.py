"""A read whose coefficients are those of one task among several that a tenant knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..core import CommonweightError, Read, serial, unknown


@serial
@dataclass(frozen=True)
class OfTask:
    """What `inner` reads of the pools, those in `of` by the task's entry of their first dimension.

    names: of the tasks, in the order of that dimension. of: which of the read's pools have it. task: which one it is;
    -1, as in a method's plan: nobody has said, and nothing can be read. Two that differ in `task` alone are equal, so
    that rows of several tasks run in one product. Linear in: what `inner` is linear in.
    Raises: CommonweightError where no task is said.
    """

    inner: Any
    names: tuple[str, ...]
    of: tuple[int, ...] = (1,)
    task: int = field(default=-1, compare=False)

    def __call__(self, *pools: Tensor) -> Tensor:
        if self.task < 0:
            raise CommonweightError(
                f"these numbers differ by task, and no task is said; known: {', '.join(self.names)}. A model of one of "
                "them: host.merged(name, task=)"
            )
        return self.inner(*(p[self.task] if i in self.of else p for i, p in enumerate(pools)))


def tasks_of(reads: Mapping[str, Read]) -> tuple[str, ...]:
    """The tasks that a use's reads know; none where no read goes by them."""
    return next((r.address.names for r in reads.values() if isinstance(r.address, OfTask)), ())


def at_task(reads: Mapping[str, Read], task: str) -> dict[str, Read]:
    """The same reads, of one task: each finds it by its name, for they may have their tasks in other orders. Raises:
    CommonweightError where one of them does not know it."""
    told = {
        k: replace(r.address, task=_at(r.address.names, task))
        for k, r in reads.items()
        if isinstance(r.address, OfTask)
    }
    return {k: Read(told.get(k, r.address), r.pools) for k, r in reads.items()}


def _at(names: tuple[str, ...], task: str) -> int:
    if task not in names:
        raise unknown("task", task, names)
    return names.index(task)
