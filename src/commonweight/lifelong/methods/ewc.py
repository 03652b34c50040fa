"""EWC: numbers that mattered to earlier tasks are held by springs."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import config, option
from ..asks import Carried, Pools, Run, Stage, Train, body, rebodied
from ..registry import method
from ..statistics import drawn_first, squared_gradients
from .sequential import newest


@config
class EWC:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")
    weight: float = option(1000.0, "lambda: how much earlier tasks count", gt=0)
    rows: int = option(256, "rows of a task that its Fisher information is worked out from", ge=1)


@method(
    "ewc",
    EWC,
    paper="Overcoming Catastrophic Forgetting in Neural Networks, arXiv 1612.00796",
    carries="the tenant's pools, and two numbers for each of theirs: sum F and sum F theta",
    grows="a head",
)
def stage(at: Stage, had: Carried) -> Run:
    """Loss + sum over earlier tasks t of lambda/2 sum_i F_t,i (theta_i - theta*_t,i)^2, theta the body's pools.

    F: the diagonal of the empirical Fisher information, of `rows` rows, at the end of each task. All tasks' springs are
    one: with F = sum F_t and m = sum F_t theta_t / F the gradients are the same, so what is kept does not grow.
    Cost: a step of training for each of `rows` rows after a task. Source: arXiv 1612.00796, eq. (3).
    Differs: labels as they are, where the Fisher information proper draws them from the model; heads have no spring.
    """
    springs = held(had.tensors)
    weight = at.config.weight
    trained = yield Train(start=newest(had), penalty=(lambda pools: pull(pools, springs, weight)) if springs else None)
    mine = trained.tenants[at.name]
    rows = drawn_first(at.train, at.config.rows)
    fisher = squared_gradients(at.host, at.name, mine, at.task, rows)
    where = body(mine)
    tensors = dict(had.tensors)
    for n, f in fisher.items():
        for key, more in ((f"F/{n}", f), (f"Ft/{n}", f * where[n])):
            tensors[key] = tensors[key].to(more.device) + more if key in tensors else more
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine}, tensors=tensors)


def held(tensors: Pools) -> dict[str, tuple[Tensor, Tensor]]:
    """Pool -> (F, where the springs meet); a number without a spring rests where it is, with F = 0."""
    out = {}
    for key, f in tensors.items():
        if key.startswith("F/"):
            out[key[2:]] = f, torch.where(f > 0, tensors[f"Ft/{key[2:]}"] / f, torch.zeros_like(f))
    return out


def pull(pools: Pools, springs: dict[str, tuple[Tensor, Tensor]], weight: float) -> Tensor:
    terms = [
        (f.to(pools[n].device) * (pools[n] - m.to(pools[n].device)).square()).sum() for n, (f, m) in springs.items()
    ]
    return weight / 2 * torch.stack(terms).sum()
