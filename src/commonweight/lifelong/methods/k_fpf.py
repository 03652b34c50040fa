"""k-FPF: the few pools that change most between tasks are tuned on kept rows, now and then; no other replay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...core import config, option
from ..asks import Carried, Pools, Run, Stage, Train, body, rebodied
from ..memory import kept
from ..registry import method
from .sequential import newest


@config
class KFPF:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")
    rows: int = option(64, "rows of each task that are kept", ge=1)
    share: float = option(0.2, "share of the pools that are tuned: those that changed most", gt=0, le=1)
    each: int = option(1, "a tuning after every so many tasks", ge=1)
    epochs: float = option(10.0, "passes over the kept rows in a tuning", gt=0)


@method(
    "k-fpf",
    KFPF,
    paper="Does Continual Learning Equally Forget All Parameters?, ICML 2023, arXiv 2304.04158",
    carries="the tenant's pools, the kept rows, and how much each pool changed between tasks",
    grows="a head and `rows` rows",
    rows="`rows` of each task",
    id=369,
)
def stage(at: Stage, had: Carried) -> Run:
    """Each task goes on as in `sequential`; after every `each` tasks, from the second on, the pools of largest C and
    all heads are tuned on the kept rows of all tasks, the others rest.

    C of a pool: the mean over tasks of (1/|theta|) ||theta_{t+1} - theta_t||_1, its numbers after two tasks in a row.
    Source: arXiv 2304.04158, abstract, and a public note on its metrics: no code was found, and share, epochs, rows and
    the times of tuning are ours. Differs: modules are pools of the tenant.
    """
    c, old = at.config, newest(had)
    trained = yield Train(start=old)
    mine = trained.tenants[at.name]
    rows = kept(had.rows, at.train, c.rows, at.recipe.seed, at.name)
    changed = dict(had.facts.get("changed", {}))
    tenants = {**rebodied(had.tenants, mine), at.name: mine}
    if old is not None:
        for n, d in change(body(old), body(mine)).items():
            changed[n] = changed.get(n, 0.0) + d
    if changed and (at.number + 1) % c.each == 0:
        rest = frozenset(body(mine)) - sensitive(changed, c.share)
        heads = {n: tenants[n] for n in rows if n != at.name}
        trained = yield Train(
            start=mine, values={**mine.pools}, still=rest, rows=rows[at.name], heads=heads, recipe={"epochs": c.epochs},
            beside={n: r for n, r in rows.items() if n != at.name},
        )  # fmt: skip
        tenants = {**tenants, **trained.tenants}
        tenants = {n: tenants[n] for n in (*had.tenants, at.name)}
    return had._replace(tenants=tenants, rows=rows, facts={"changed": changed})


def change(old: Pools, new: Pools) -> dict[str, float]:
    """(1/|theta|) ||new - old||_1 of each pool."""
    return {n: float(_apart(p, old[n])) for n, p in new.items() if n in old and p.is_floating_point()}


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.to(a.device).float()).abs().mean()


def sensitive(changed: Mapping[str, float], share: float) -> frozenset[str]:
    """The pools that changed most, at least one."""
    n = max(1, round(share * len(changed)))
    values = torch.tensor([*changed.values()])
    return frozenset([*changed][i] for i in values.argsort(descending=True, stable=True)[:n].tolist())
