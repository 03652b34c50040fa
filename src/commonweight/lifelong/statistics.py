"""Statistics of rows under a trained tenant, for methods that carry them over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapt.tasks.base import Example, Task
from ..core import Site
from ..core.statistics import add_squared
from ..host import Host
from ..host.shown import statistics
from ..host.weights import device_of
from ..methods.shown import Shown
from .asks import Learned, Stage, is_head
from .bodies import put


def drawn_first(rows: Sequence[Example], n: int) -> Sequence[Example]:
    """At most n rows, spread evenly over all."""
    if len(rows) <= n:
        return rows
    return [rows[i * len(rows) // n] for i in range(n)]


def squared_gradients(
    host: Host,
    name: str,
    tenant: Learned,
    task: Task,
    rows: Sequence[Example],
    loss: Callable[..., Tensor] | None = None,
) -> dict[str, Tensor]:
    """The mean over rows of the squared gradient of each row's loss by each trained pool of the body: the diagonal of
    the empirical Fisher information. Cost: a step of training a row. loss: (model, batch), in place of the task's."""
    on = put(host, name, tenant)
    try:
        pools = {n: p for n, p in on.named_parameters() if not is_head(n)}
        sums = {n: torch.zeros_like(p) for n, p in pools.items()}
        host.model.eval()
        with torch.enable_grad(), host.route(name):
            for row in rows:
                found = (loss or task.loss)(host.model, batch_of(host, task, [row]))
                add_squared(sums, found, pools)
        return {n: s / len(rows) for n, s in sums.items()}
    finally:
        host.remove(name)


def inputs(stage: Stage, tenant: Learned | None, sites: Sequence[Site], rows: Sequence[Example]) -> dict[str, Tensor]:
    """X^T X / n of the n tokens that come to each site, (d_in, d_in), while the tenant answers; None: the base."""
    host, size = stage.host, stage.recipe.batch_size
    batches = [stage.task.collate(rows[i : i + size]) for i in range(0, len(rows), size)]
    shown = Shown(batches, lambda model, batch: _answered(model, batch))
    name = f"{stage.name}-inputs"
    if tenant is None:
        return dict(statistics(host.roster, "inputs", sites, shown, None))
    put(host, name, tenant)
    try:
        with host.route(name):
            return dict(statistics(host.roster, "inputs", sites, shown, None))
    finally:
        host.remove(name)


def _answered(model: Any, batch: Any) -> Tensor:
    return model(**{k: v for k, v in batch.items() if k != "labels"}).logits.float().sum()


def batch_of(host: Host, task: Task, rows: Sequence[Example]) -> dict[str, Tensor]:
    device = device_of(host.model)
    return {k: v.to(device) for k, v in task.collate(rows).items()}


def gradients(stage: Stage, tenant: Learned, rows: Sequence[Example]) -> dict[str, Tensor]:
    """The sum over batches of the gradient of mean_rows ||logits||^2, by each trained pool of the body; no absolute
    value in between. Cost: a step of training for each batch."""
    host, size, name = stage.host, stage.recipe.batch_size, f"{stage.name}-gradients"
    on = put(host, name, tenant)
    try:
        pools = {n: p for n, p in on.named_parameters() if not is_head(n)}
        sums = {n: torch.zeros_like(p) for n, p in pools.items()}
        host.model.eval()
        with torch.enable_grad(), host.route(name):
            for i in range(0, len(rows), size):
                batch = batch_of(host, stage.task, rows[i : i + size])
                batch.pop("labels", None)
                said = host.model(**batch).logits.float()
                found = said.square().flatten(1).sum(1).mean()
                for n, g in zip(pools, torch.autograd.grad(found, list(pools.values()), allow_unused=True)):
                    if g is not None:
                        sums[n].add_(g)
        return sums
    finally:
        host.remove(name)
