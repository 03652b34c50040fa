"""MOS: an adapter a task, pulled towards the mean of the earlier ones, and found again by its own features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...adapt.tasks.base import Example
from ...core import Plan, config, option
from ...core.schedule import NONE, Edit, Moment, Pools, State
from ..asks import Carried, Run, Stage, Train, body, mean_of
from ..features import class_means, features, nearest
from ..registry import method
from .sequential import newest


@config
class MOS:
    size: int = option(16, "width of the adapter beside each feed-forward part", ge=1)
    scale: float = option(1.0, "factor on what the adapter adds", gt=0)
    pull: float = option(0.1, "share m of the way to the mean of the earlier adapters, after each step", ge=0, le=1)
    rounds: int = option(4, "at most so many looks at who answers a row, where nobody tells", ge=1)


@dataclass(frozen=True)
class Pulled:
    """A schedule: theta <- (1 - m) theta + m theta_mean after each step."""

    mean: Mapping[str, Tensor]
    share: float

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return NONE, Edit()

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        return NONE, Edit(values={n: at.pools[n].lerp(m.to(at.pools[n]), self.share) for n, m in self.mean.items()})

    def settled(self, step: int, steps: int) -> bool:
        return True


def adapter(config: MOS) -> tuple[str, dict[str, Any]]:
    return "parallel", {"size": config.size, "scale": config.scale, "act": "relu", "placement": "ffn"}


def pick(at: Stage, had: Carried, rows: Sequence[Example]) -> list[str]:
    """Begins with the task whose class means, of the plain base, are nearest; then again by the features of that task's
    adapter, until the answer stays, at most `rounds` times."""
    names, size = [*had.facts["tasks"]], at.recipe.eval_rows
    task = nearest(features(at.host, None, at.task, rows, size), [had.tensors[f"base/{n}"] for n in names])
    seen = [features(at.host, had.tenants[n], at.task, rows, size) for n in names]
    means = [had.tensors[f"own/{n}"] for n in names]
    votes = torch.stack([nearest(f, means) for f in seen], 1)  # (rows, tasks): what each adapter says
    return [names[i] for i in refined(task, votes, at.config.rounds).tolist()]


def refined(task: Tensor, votes: Tensor, rounds: int) -> Tensor:
    """task (rows,): the first guess. votes (rows, tasks): the next guess, by the present one."""
    for _ in range(rounds):
        new = votes.gather(1, task[:, None])[:, 0]
        if torch.equal(new, task):
            break
        task = new
    return task


@method(
    "mos",
    MOS,
    paper="MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning, AAAI 2025, arXiv 2412.09441",
    adapter=adapter,
    carries="an adapter a task, and the mean features of every class, by the base and by its own adapter",
    grows="an adapter, a head, and two vectors a class",
    id=476,
    tasks=("classify",),
    pick=pick,
)
def stage(at: Stage, had: Carried) -> Run:
    """Each task trains an adapter that begins where the last one ended; after each step theta <- (1 - m) theta + m
    times the mean of the finished ones. Where nobody tells the task, see `pick`.

    Cost of `pick`: every adapter runs on every row. Source: arXiv 2412.09441; github.com/sun-hailong/AAAI25-MOS
    @8d5e07c, whose code applies the pull once a block and step, and to stored adapters in evaluation: ours once a step.
    Differs: a head a task; no loss on prototypes, no Gaussian rows to align one classifier of all classes; who answers
    is told by cosines of class means, where theirs asks one classifier.
    """
    c = at.config
    done = [body(t) for t in had.tenants.values()]
    pulled = Pulled(mean_of(done), c.pull) if done and c.pull else None
    trained = yield Train(start=newest(had), schedule=pulled)
    mine, size, classes = trained.tenants[at.name], at.recipe.eval_rows, len(at.task.labels or ())
    tensors = {
        f"{kind}/{at.name}": class_means(features(at.host, by, at.task, at.train, size), at.train, classes)
        for kind, by in (("base", None), ("own", mine))
    }
    return had._replace(
        tenants={**had.tenants, at.name: mine}, tensors={**had.tensors, **tensors},
        facts={"tasks": [*had.facts.get("tasks", ()), at.name]},
    )  # fmt: skip
