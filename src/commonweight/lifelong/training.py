"""An ask of a lifelong method, done by adapt's own loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapt import optimizers
from ..adapt.tasks.base import Wrapped, rows_of
from ..adapt.train import train_parts
from ..adapt.trainer import Part
from ..core import CommonweightError
from .asks import Learned, Pools, Stage, Train, Trained, body, head, is_head
from .bodies import fresh, learned, put


class Penalised(Wrapped):
    """A task whose loss has a penalty on pools beside it."""

    mixes: ClassVar[bool] = True

    def __init__(self, task: Any, penalty: Callable[[Pools], Tensor], pools: Pools):
        super().__init__(task)
        self.penalty, self.pools = penalty, pools

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.task.loss(model, batch) + self.penalty(self.pools)


def train(stage: Stage, ask: Train, checkpoint: Path | None, resume: bool, progress: Any) -> Trained:
    """The tenants are on the host while they are trained, and no longer."""
    host, started = stage.host, time.perf_counter()
    name = ask.name or stage.name
    task = ask.doing or stage.task
    rows = list(stage.train if ask.rows is None else ask.rows)
    dev = list((stage.dev if ask.rows is None else []) if ask.dev is None else ask.dev)
    recipe = replace(stage.recipe, **ask.recipe)
    first = begun(stage, ask, name, task.labels, rows)
    made = {n: first._replace(labels=t.labels, pools={**body(first), **head(t)}) for n, t in ask.heads.items()}
    several = bool(ask.beside)
    parts: list[Part] = []
    try:
        own = put(host, name, first, ask.still, several)
        if ask.schedule is not None and own.method.scheduled(own.config, own.plan) is not None:
            raise CommonweightError(
                f"{stage.method} has a schedule of its own, and a lifelong method that masks or holds numbers needs "
                "its place: take another adapter, -o adapter=lora say"
            )
        pools = {n: p for n, p in own.pools.items() if not is_head(n)}
        doing: Any = task if ask.penalty is None else Penalised(task, ask.penalty, pools)
        parts.append(Part(own, doing, rows, dev, schedule=ask.schedule, optimizer=ask.optimizer))
        for other, kept in ask.beside.items():
            tenant = put(host, other, made[other], ask.still, True)
            parts.append(Part(tenant, stage.tasks[other], list(kept), []))
        run = train_parts(
            host, "lm" if task.labels is None else "classify", parts, recipe, checkpoint, resume, progress
        )
        out = {p.tenant.name: learned(p.tenant) for p in parts}
        kept = state_of(run, own) if ask.optimizer else {}
    finally:
        for tenant in [p.tenant.name for p in parts]:
            host.remove(tenant)
        host.model.eval()
    steps = int(run.curve[-1]["step"]) if run.curve else 0
    return Trained(
        out, steps, time.perf_counter() - started, _metrics(run, dev), {k: v.clone() for k, v in kept.items()}
    )


def state_of(run: Any, tenant: Any) -> dict[str, Tensor]:
    """What the run's optimizer keeps, ``key/pool``; of a run that had ended before it was resumed, from its file."""
    there = getattr(run, "found", None)
    if there is not None and there.facts["done"]:  # its optimizer was made anew, and has taken no step
        found = {k[5:]: v for k, v in there.tensors.items() if k.startswith("adam/")}
    else:
        found, _ = optimizers.state(run.optimizer, dict(tenant.named_parameters()))
    return {k: v.detach().clone() for k, v in found.items()}


def begun(stage: Stage, ask: Train, name: str, labels: Any, rows: Any) -> Learned:
    """What a training begins with."""
    new = fresh(stage, ask.options, name, labels, rows)
    values: dict[str, Tensor] = {}
    if ask.start is not None:
        values = {n: p for n, p in body(ask.start).items() if n in new.pools and p.shape == new.pools[n].shape}
    values |= ask.values
    if lost := [n for n in values if n not in new.pools or new.pools[n].shape != values[n].shape]:
        raise CommonweightError(f"{stage.method}: {lost[0]} is none of its pools, or has another shape")
    return new._replace(pools={**new.pools, **{n: v.to(new.pools[n].dtype) for n, v in values.items()}})


def _metrics(run: Any, dev: Any) -> Mapping[str, float]:
    """Of the dev rows, where the kept state scored best."""
    name, more = run.task.better
    scored = [c for c in run.curve if f"dev_{name}" in c]
    if not scored:
        return {}
    best = (max if more else min)(scored, key=lambda c: c[f"dev_{name}"])
    found = {k[4:]: v for k, v in best.items() if k.startswith("dev_") and "/" not in k}
    return {**found, "n": rows_of(dev)}


@torch.no_grad()
def logits(host: Any, tenant: str, task: Any, examples: Any, size: int) -> Tensor:
    """A classifier's answers, (rows, classes), on the CPU."""
    from ..adapt.tasks.base import batches
    from ..host.weights import device_of

    out: Tensor | None = None
    host.model.eval()
    with host.route(tenant):
        for places, batch in batches(task, examples, size, device_of(host.model)):
            batch.pop("labels")
            found = host.model(**batch).logits.float().cpu()
            out = torch.empty(len(examples), found.shape[1]) if out is None else out
            out[places] = found
    assert out is not None
    return out


def logits_of(host: Any, tenant: Learned, task: Any, examples: Any, size: int) -> Tensor:
    """`logits` of a tenant that is on no host."""
    put(host, TOLD, tenant)
    try:
        return logits(host, TOLD, task, examples, size)
    finally:
        host.remove(TOLD)


TOLD = "answers-of-rows"
