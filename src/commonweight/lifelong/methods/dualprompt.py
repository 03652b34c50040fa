"""DualPrompt: prompts in front that all tasks train, and behind them some of each task's own, found by a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ...adapt.tasks.base import Example
from ...core import Site, config, option
from ..asks import Carried, Run, Stage, Train, body
from ..features import queries
from ..registry import method
from .sequential import newest


@config
class DualPrompt:
    tokens: int = option(10, "keys and values of a prompt", ge=1)
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

    Earlier tasks are answered by the newest general prompts with their own others. Cost: as prefix-tuning; a pass of
    the base over the rows. Source: arXiv 2204.04799, eqs. (2) to (5), prefixes as in its main form, in two attentions
    and the next three. Differs: the key's loss depends on nothing but the queries, so k is its minimum itself, the
    mean of queries of length 1, and no weight of it is wanted; one length for both kinds, where the paper has 5 and
    20; a head a task; what `prompt-pool` says of the query.
    """
    old = newest(had)
    values = {} if old is None else shared(old.pools, old.sites, at.config.general)
    trained = yield Train(values=values)
    mine = trained.tenants[at.name]
    new = shared(body(mine), mine.sites, at.config.general)
    tenants = {n: t._replace(pools={**t.pools, **new}) for n, t in had.tenants.items()}
    key = F.normalize(queries(at.host, at.task, at.train, at.recipe.eval_rows), dim=1).mean(0)
    return had._replace(tenants={**tenants, at.name: mine}, tensors={**had.tensors, at.name: key})


def shared(pools: Any, sites: Sequence[Site], general: int) -> dict[str, Any]:
    """Those of the first attentions."""
    return {f"{s.name}.P": pools[f"{s.name}.P"] for s in sites[:general]}
