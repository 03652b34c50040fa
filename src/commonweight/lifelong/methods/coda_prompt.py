"""CODA-Prompt: prompts are sums of components by attention; each task adds some, and the earlier ones rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core import config, option
from ..asks import Carried, Pools, Run, Stage, Train, body, rebodied
from ..registry import method
from .sequential import newest


@config
class CODAPrompt:
    components: int = option(10, "components that a task adds", ge=1)
    tokens: int = option(4, "keys and values of a prompt: half of the paper's length, which holds both", ge=1)
    weight: float = option(0.1, "lambda: of what components lack to be orthogonal", ge=0)
    std: float = option(0.02, "deviation of the normal numbers that components start from", ge=0)


def adapter(config: CODAPrompt) -> tuple[str, dict[str, Any]]:
    how = {"prompts": config.components, "tokens": config.tokens, "std": config.std}
    return "prompt-pool", {"read": "attended", **how}


@method(
    "coda-prompt",
    CODAPrompt,
    paper="CODA-Prompt: COntinual Decomposed Attention-based Prompting, CVPR 2023, arXiv 2211.13218",
    adapter=adapter,
    carries="every task's components, their keys and what queries are multiplied by",
    grows="`components` components in every attention, and a head",
    tasks=("classify",),
)
def stage(at: Stage, had: Carried) -> Run:
    """p(x) = sum_m cos(x * A_m, K_m) P_m over the components of all tasks so far; those of earlier tasks are held.
    Loss + weight * sum over P, K and A of each layer of mean((B B^T - I)^2), B all components as rows.

    All tasks are answered by all components: an earlier task's rows meet later ones too, by their cosines. Cost: as
    `prompt-pool`; the penalty M^2 numbers for each width. Source: arXiv 2211.13218, eqs. (3) to (7);
    github.com/GT-RIPL/CODA-Prompt, models/zoo.py, with its length (8, half keys and half values), its 10 components a
    task and, of the paper, lambda 0.1. Differs: every attention, where theirs takes the first five of twelve; small
    normal numbers at the start, where its later code takes Gram-Schmidt's; a head a task; components a task are given,
    where theirs divides 100 by the number of tasks, which a stream does not know.
    """
    c, old = at.config, newest(had)
    trained = yield Train(
        options={"parts": at.number + 1}, start=old, still=frozenset(body(old) if old else ()),
        penalty=(lambda pools: skewed(pools, c.weight)) if c.weight else None,
    )  # fmt: skip
    mine = trained.tenants[at.name]
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine})


def skewed(pools: Pools, weight: float) -> Tensor:
    """pools: ``site.P0``, ``site.P1``, ... (M, ...), the same of K and A."""
    each: dict[str, list[Tensor]] = {}
    for n, p in pools.items():
        each.setdefault(n.rstrip("0123456789"), []).append(p.flatten(1))
    every = [torch.cat(parts) for parts in each.values()]
    return weight * torch.stack([(b @ b.T - torch.eye(len(b)).to(b)).square().mean() for b in every]).sum()
