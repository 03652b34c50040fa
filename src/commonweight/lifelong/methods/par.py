"""PAR: a task joins the expert of related tasks, or gets one of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core import config, option
from ..asks import Carried, Run, Stage, Train, body, rebodied
from ..features import class_means, features
from ..losses import numbered
from ..registry import method
from .lwf import remembering


@config
class PAR:
    adapter: str = option("lora", "the method that experts are trained by: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")
    reuse: float = option(0.5, "a task whose distance from an expert is at most this joins it", ge=0, le=1)
    weight: float = option(1.0, "of the distillation from the expert as it was", ge=0)
    temperature: float = option(2.0, "of the distillation", gt=0)


@method(
    "par",
    PAR,
    paper="Task Difficulty Aware Parameter Allocation & Regularization for Lifelong Learning, arXiv 2304.05288",
    carries="experts, and the mean features of every task's classes",
    grows="a head and a vector a class; an expert where no earlier task is related",
    id=394,
    tasks=("classify",),
    goes_on=False,
)
def stage(at: Stage, had: Carried) -> Run:
    """Distance of the new task t from an old one p, by features f of the plain base and class means m: S = the sum over
    t's classes c of max(0, mean over rows of log(min_c' |f - m_p,c'| / |f - m_t,c|)); d = min(1 - exp(-2 S), S), and 1
    where that is 0. An expert's: the mean over its tasks.

    Nearest expert at most `reuse` away: with less than half the rows of its largest task a new head alone is trained on
    it; with more, it trains on, and the heads of its tasks are distilled as in `lwf`. Else a new expert.
    Cost: a pass of the base over the rows. Source: arXiv 2304.05288; github.com/WenjinW/PAR @5539e08a, par_v2.py.
    Differs: an expert is a tenant; between .5 and .75 and beyond, where theirs takes the expert's architecture or
    searches one, ours begins a tenant anew; tasks of 25 rows and less are treated as others.
    """
    c, size = at.config, at.recipe.eval_rows
    found = features(at.host, None, at.task, at.train, size)
    means = class_means(found, at.train, len(at.task.labels or ()))
    labels = torch.tensor([r["label"] for r in at.train])
    groups: list[list[str]] = [list(g) for g in had.facts.get("experts", ())]
    counts = dict(had.facts.get("counts", {}))
    far = [sum(distance(found, labels, means, had.tensors[n]) for n in g) / len(g) for g in groups]
    best = min(range(len(far)), key=far.__getitem__, default=None)
    tenants = dict(had.tenants)
    if best is None or far[best] > c.reuse:
        trained = yield Train()
        groups.append([at.name])
    else:
        group = groups[best]
        expert = had.tenants[group[-1]]
        if 2 * len(at.train) < max(counts[n] for n in group):
            trained = yield Train(start=expert, still=frozenset(body(expert)))
        else:
            doing = remembering(at, Carried({n: had.tenants[n] for n in group}))
            trained = yield Train(start=expert, doing=doing, rows=numbered(at.train), dev=at.dev)
        group.append(at.name)
        tenants |= rebodied({n: tenants[n] for n in group[:-1]}, trained.tenants[at.name])
    return had._replace(
        tenants={**tenants, at.name: trained.tenants[at.name]}, tensors={**had.tensors, at.name: means},
        facts={"experts": groups, "counts": {**counts, at.name: len(at.train)}, "distances": _told(had, at, far)},
    )  # fmt: skip


def distance(found: Tensor, labels: Tensor, own: Tensor, other: Tensor) -> float:
    """found (rows, d) of the new task, its labels and class means (classes, d); other: class means of an old one."""
    total = 0.0
    for k in labels.unique().tolist():
        f = found[labels == k]
        ratio = torch.cdist(f, other).min(1).values.clamp(min=1e-12) / (f - own[k]).norm(dim=1).clamp(min=1e-12)
        total += max(0.0, float(ratio.log().mean()))
    return min(1 - math.exp(-2 * total), total) or 1.0


def _told(had: Carried, at: Stage, far: Sequence[float]) -> Mapping[str, Sequence[float]]:
    return {**had.facts.get("distances", {}), at.name: list(far)}
