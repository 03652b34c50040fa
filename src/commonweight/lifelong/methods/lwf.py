"""LwF: the new task's rows must go on telling the earlier heads what they told them before."""

from __future__ import annotations

from typing import Any

from ...adapt.tasks.distil import Distillation, Distilled
from ...core import build, config, option
from ..asks import Carried, Learned, Run, Stage, Train, head, rebodied
from ..bodies import put
from ..losses import Remembering, numbered
from ..registry import method
from ..training import logits_of
from .sequential import newest


@config
class LwF:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")
    weight: float = option(1.0, "lambda_o: how much earlier tasks count", gt=0)
    temperature: float = option(2.0, "both answers are softened by it", gt=0)


@method(
    "lwf",
    LwF,
    paper="Learning without Forgetting, arXiv 1606.09282",
    carries="the tenant's pools",
    grows="a head",
)
def stage(at: Stage, had: Carried) -> Run:
    """Loss on the new rows + weight * sum over earlier heads of the cross entropy between what they said of these rows
    before the task and what they say now, both softened by `temperature`.

    Of language models there is one head: (CE + weight KL(before || now)) / (1 + weight), at every scored token.
    Cost: the new rows once through the old tenant, and their logits; of lm a forward pass of it a step.
    Source: arXiv 1606.09282, eqs. (1) to (4). Differs: earlier heads stay as they are, where the paper lets them train.
    """
    old, more = newest(had), at.config
    if old is None:
        trained = yield Train()
    elif at.task.labels is None:
        put(at.host, TEACHER, old)
        try:
            share = more.weight / (1 + more.weight)
            how = build(Distillation, {"share": share, "temperature": more.temperature})
            doing = Distilled(at.task, at.host.module(TEACHER), how)  # type: ignore[arg-type]
            trained = yield Train(start=old, doing=doing)  # type: ignore[arg-type]
        finally:
            at.host.remove(TEACHER)
    else:
        trained = yield Train(start=old, doing=remembering(at, had), rows=numbered(at.train), dev=at.dev)
    mine = trained.tenants[at.name]
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine})


TEACHER = "teacher-before-the-task"


def remembering(at: Stage, had: Carried) -> Any:
    """The new task with what the earlier heads say of its rows now."""
    told, heads = {}, {}
    for name, tenant in had.tenants.items():
        told[name] = logits_of(at.host, tenant, at.task, at.train, at.recipe.eval_rows)
        heads[name] = weights(tenant)
    return Remembering(at.task, heads, told, at.config.weight, at.config.temperature)


def weights(tenant: Learned):
    """(W, b) of its head."""
    found = head(tenant)
    return next(p for n, p in found.items() if n.endswith(".W")), next(p for n, p in found.items() if n.endswith(".b"))
