"""O-LoRA: a low-rank update for each task, whose A is orthogonal to those of all earlier tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import config, option
from ..asks import Carried, Pools, Run, Stage, Train, body, rebodied
from ..bodies import fresh
from ..growing import Held, masks, options, widened
from ..registry import method
from .sequential import newest


@config
class OLoRA:
    rank: int = option(8, "rank r of each task's update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    weight: float = option(0.5, "lambda_1: of the sum of |A_earlier A_new^T|", ge=0)
    norm: float = option(0.0, "lambda_2: of the norms of the new A and B", ge=0)


def adapter(config):
    return "lora", options(config.rank, config.alpha or 2.0 * config.rank, 1, {"dropout": config.dropout})


@method(
    "o-lora",
    OLoRA,
    paper="Orthogonal Subspace Learning for Language Model Continual Learning, arXiv 2310.14152",
    adapter=adapter,
    carries="every task's A and B, as one LoRA",
    grows="a rank r in every layer, and a head",
)
def stage(at: Stage, had: Carried) -> Run:
    """W + (alpha / r) sum over tasks of B_t A_t; the newest A and B train, the others are held. Loss + weight * sum
    over layers and earlier t of sum |A_t A_new^T| + norm * sum (||A_new|| + ||B_new||).

    All tasks are answered by the sum of all, as one LoRA of rank T r. Cost: a step of rank T r.
    Source: arXiv 2310.14152, eqs. (6) to (8); github.com/cmnfriend/O-LoRA @2a2e620, uie_trainer_lora.py: entries in
    absolute value, where the paper's eq. (7) squares them. Differs: a head a task.
    """
    c, t, old = at.config, at.number, newest(had)
    how = options(c.rank, c.alpha or 2.0 * c.rank, t + 1, {"dropout": c.dropout})
    if old is None:
        pull = None if not c.norm else (lambda pools: apart(pools, 0, c.weight, c.norm))
        trained = yield Train(options=how, penalty=pull)
    else:
        new = body(fresh(at, how, at.name, at.task.labels, at.train))
        first, before = widened(old, new), t * c.rank
        trained = yield Train(
            options=how, values=first, schedule=Held(masks(first, before, a_too=False)),
            penalty=lambda pools: apart(pools, before, c.weight, c.norm),
        )  # fmt: skip
    mine = trained.tenants[at.name]
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine})


def apart(pools: Pools, before: int, weight: float, norm: float) -> Tensor:
    """before: rank of the earlier tasks, whose rows of A stand first."""
    every = [p for n, p in pools.items() if n.endswith(".A")]
    total = torch.stack([(a[:before].detach() @ a[before:].T).abs().sum() for a in every]).sum() * weight
    if norm:
        rest = [p[:, before:] for n, p in pools.items() if n.endswith(".B")]
        total = total + norm * torch.stack([v.norm() for v in (*(a[before:] for a in every), *rest)]).sum()
    return total
