"""What a lifelong method is shown, what it asks for, and what it hands on: data alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapt.optimizers import Maker
from ..adapt.recipe import Recipe
from ..adapt.tasks.base import Example, Task
from ..core import Site
from ..core.schedule import NONE, Schedule
from ..host import Host

Pools = Mapping[str, Tensor]


class Learned(NamedTuple):
    """A tenant off its host: what answers a task. pools: by the names of its plan, the head's too."""

    method: str
    config: Any
    seed: int
    sites: tuple[Site, ...]
    labels: tuple[str, ...] | None
    pools: Pools


class Carried(NamedTuple):
    """What goes from one stage to the next; it lies in the store, and nothing else does.

    tenants: who answers each task that was learned. tensors, facts: what the method remembers, the facts JSON-ready.
    rows: of earlier tasks, if the method declares that it keeps some; examples, as tokens.
    """

    tenants: Mapping[str, Learned] = NONE
    tensors: Pools = NONE
    facts: Mapping[str, Any] = NONE
    rows: Mapping[str, Sequence[Example]] = NONE


@dataclass(frozen=True)
class Stage:
    """A task that has arrived. number: from 0. config: the method's. method, options, sites: of the tenants that are
    trained. task, train, dev: the new task's. tasks: of all tasks so far, the new one last. earlier: the rows of
    earlier tasks, for the upper bound that may see them; last: whether the file names no further task."""

    host: Host
    name: str
    number: int
    config: Any
    method: str
    options: Mapping[str, Any]
    sites: Any
    task: Task
    train: Sequence[Example]
    dev: Sequence[Example]
    recipe: Recipe
    tasks: Mapping[str, Task]
    earlier: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    last: bool = False


@dataclass(frozen=True)
class Train:
    """An ask: train a tenant on the new task's rows, by adapt's own loop.

    options: of the adapter, over the stream's. start: the tenant whose pools it begins with; those of another shape,
    and the head, are its own; None: a fresh one. values: first values of pools, before all others. still: pools
    that are not trained. beside: earlier tasks whose rows are in the batches too; each has its own head, from `heads`,
    and all read one body. penalty: of the body's pools, added to the loss. doing: the task in place of the stage's;
    rows, dev: its rows. schedule, optimizer: see `adapt.trainer.Part`. recipe: numbers over the stream's. name: the
    tenant's, in place of the task's.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    start: Learned | None = None
    values: Pools = field(default_factory=dict)
    still: frozenset[str] = frozenset()
    beside: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    heads: Mapping[str, Learned] = field(default_factory=dict)
    penalty: Callable[[Pools], Tensor] | None = None
    doing: Task | None = None
    rows: Sequence[Example] | None = None
    dev: Sequence[Example] | None = None
    schedule: Schedule | None = None
    optimizer: Maker | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


class Trained(NamedTuple):
    """tenants: the new task's, and those whose rows were beside. state: what the optimizer kept, ``key/pool``."""

    tenants: Mapping[str, Learned]
    steps: int
    seconds: float
    metrics: Mapping[str, float]
    state: Pools = NONE


Run = Generator[Train, Trained, Carried]


def body(tenant: Learned) -> dict[str, Tensor]:
    """Its pools but for the head's."""
    return {n: p for n, p in tenant.pools.items() if not is_head(n)}


def head(tenant: Learned) -> dict[str, Tensor]:
    return {n: p for n, p in tenant.pools.items() if is_head(n)}


def is_head(pool: str) -> bool:
    """Whether a pool is one of `methods.head`: it stands at the model's place for heads."""
    return pool.rpartition(".")[0] in ("head", "cls_head", "pooler_head")


def rebodied(tenants: Mapping[str, Learned], new: Learned) -> dict[str, Learned]:
    """Every tenant with the new one's body and settings, and its own head."""
    mine = body(new)
    return {n: new._replace(labels=t.labels, pools={**mine, **head(t)}) for n, t in tenants.items()}


def mean_of(each: Sequence[Pools]) -> dict[str, Tensor]:
    return {n: torch.stack([p[n] for p in each]).mean(0) for n in each[0]}
