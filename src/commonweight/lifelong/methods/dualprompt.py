"""DualPrompt: prompts in front that all tasks train, and behind them some of each task's own, found by a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ...adapt.tasks.base import Example
from ...core import Rng, Site, config, option
from ..asks import Carried, Pools, Run, Stage, Train, body
from ..bodies import fresh
from ..features import queries
from ..registry import method
from .sequential import newest


@config
class DualPrompt:
    tokens: int = option(5, "keys and values of a prompt", ge=1)
    general: int = option(2, "attentions, from the first on, whose prompts all tasks train", ge=0)
    expert: int = option(3, "attentions behind them, whose prompts are a task's own", ge=1)


def adapter(config: DualPrompt) -> tuple[str, dict[str, Any]]:
    return "prefix-tuning", {"tokens": config.tokens}


def where(config: DualPrompt, sites: Sequence[Site]) -> Sequence[Site]:
    return sites[: config.general + config.expert]


def pick(at: Stage, had: Carried, rows: Sequence[Example]) -> list[str]:
    """The task whose key has the largest cosine with the row's query."""
    names = [*had.tenants]
    keys = torch.stack([had.tensors[n] for n in names])
    found = F.normalize(queries(at.host, at.task, rows, at.recipe.eval_rows), dim=1) @ F.normalize(keys, dim=1).T
    return [names[i] for i in found.argmax(1).tolist()]


@method(
    "dualprompt",
    DualPrompt,
    paper="DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning, ECCV 2022, arXiv 2204.04799",
    adapter=adapter,
    carries="the general prompts, and of each task its own and a key",
    grows="prompts in `expert` attentions, a key, and a head",
    tasks=("classify",),
    where=where,
    pick=pick,
)
def stage(at: Stage, had: Carried) -> Run:
    """Prefixes in the first `general` attentions go on from task to task; those of the next `expert` ones are the
    task's own. A key k for each task: the one of largest sum of cosines with its rows' queries. See `pick`.

    A task's own begin where the task before ended; the first ones uniform in [0, 0.01). Earlier tasks are answered by
    the newest general prompts with their own others. Cost: as prefix-tuning; a pass of the base over the rows. Source:
    arXiv 2204.04799; github.com/google-research/l2p @3e102b0, configs/cifar100_dualprompt.py (attentions 0, 1 and 2 to
    4, five keys and values in all; that of ImageNet-R has 20 in the task's own), models/prompt.py, train_continual.py.
    Differs: the key's loss depends on nothing but the queries, so k is its minimum itself, the mean of queries of
    length 1, and no weight of it is wanted (theirs is 1); one length for both kinds; a head a task; a row finds its
    task alone, where that configuration takes a batch's majority, also when it measures, task by task; what
    `prompt-pool` says of the query.
    """
    first = {} if had.tenants else started(body(fresh(at, {}, at.name, at.task.labels, at.train)), at.recipe.seed)
    trained = yield Train(start=newest(had), values=first)
    mine = trained.tenants[at.name]
    new = shared(body(mine), mine.sites, at.config.general)
    tenants = {n: t._replace(pools={**t.pools, **new}) for n, t in had.tenants.items()}
    key = F.normalize(queries(at.host, at.task, at.train, at.recipe.eval_rows), dim=1).mean(0)
    return had._replace(tenants={**tenants, at.name: mine}, tensors={**had.tensors, at.name: key})


def started(pools: Pools, seed: int) -> dict[str, torch.Tensor]:
    """Uniform in [0, 0.01)."""
    return {n: Rng(seed, f"dualprompt/{n}").uniform(tuple(p.shape), 0.0, 0.01).to(p) for n, p in pools.items()}


def shared(pools: Any, sites: Sequence[Site], general: int) -> dict[str, Any]:
    """Those of the first attentions."""
    return {f"{s.name}.P": pools[f"{s.name}.P"] for s in sites[:general]}
