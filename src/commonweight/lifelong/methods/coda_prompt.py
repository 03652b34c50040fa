"""CODA-Prompt: prompts are sums of components by attention; each task adds some, and the earlier ones rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import Rng, Site, config, option
from ..asks import Carried, Pools, Run, Stage, Train, body, rebodied
from ..registry import method
from .sequential import newest


@config
class CODAPrompt:
    components: int = option(10, "components that a task adds", ge=1)
    tokens: int = option(4, "keys and values of a prompt: half of the paper's length, which holds both", ge=1)
    weight: float = option(0.1, "lambda: of what components lack to be orthogonal", ge=0)
    attentions: int = option(5, "attentions, from the first on, that have prompts", ge=1)


def adapter(config: CODAPrompt) -> tuple[str, dict[str, Any]]:
    how = {"prompts": config.components, "tokens": config.tokens}
    return "prompt-pool", {"read": "attended", **how}


def where(config: CODAPrompt, sites: Sequence[Site]) -> Sequence[Site]:
    return sites[: config.attentions]


@method(
    "coda-prompt",
    CODAPrompt,
    paper="CODA-Prompt: COntinual Decomposed Attention-based Prompting, CVPR 2023, arXiv 2211.13218",
    adapter=adapter,
    carries="every task's components, their keys and what queries are multiplied by",
    grows="`components` components in every attention, and a head",
    tasks=("classify",),
    where=where,
)
def stage(at: Stage, had: Carried) -> Run:
    """p(x) = sum_m cos(x * A_m, K_m) P_m over the components of all tasks so far; those of earlier tasks are held.
    Loss + weight * sum over P, K and A of each layer of mean((B B^T - I)^2), B all components as rows.

    New components begin orthogonal to all earlier ones, of length 1. All tasks are answered by all components: an
    earlier task's rows meet later ones too, by their cosines. Cost: as `prompt-pool`; the penalty M^2 numbers for each
    width. Source: arXiv 2211.13218; github.com/GT-RIPL/CODA-Prompt @605ac87, models/zoo.py: attentions 0 to 4, length 8
    (half keys and half values), 10 components a task. lambda 0.1 is in the script of its first release (@22948d2),
    whose code multiplies it by 1e-6 without a word; @605ac87 has Gram-Schmidt's start in its place, and 0 in its
    scripts. Differs: a head a task; components a task are given, where theirs divides 100 by the number of tasks, which
    a stream does not know; what `prompt-pool` says of the query.
    """
    c, old = at.config, newest(had)
    trained = yield Train(
        options={"parts": at.number + 1}, start=old, still=frozenset(body(old) if old else ()),
        values=apart(body(old), at.number, at.recipe.seed) if old else {},
        penalty=(lambda pools: skewed(pools, c.weight)) if c.weight else None,
    )  # fmt: skip
    mine = trained.tenants[at.name]
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine})


def apart(pools: Pools, part: int, seed: int) -> dict[str, Tensor]:
    """First values of part `part` of each kind: rows of length 1, orthogonal to those of all parts before it.

    Source: `gram_schmidt` of the code. Earlier rows, which have been trained, are not orthogonal among themselves, and
    each is taken off by itself, as there."""
    out = {}
    for n, p in pools.items():
        if n.rpartition(".")[2] in ("P0", "K0", "A0"):
            every = torch.cat([pools[f"{n[:-1]}{i}"].flatten(1).double() for i in range(part)])
            first, name = len(every), f"{n[:-1]}{part}"
            for v in Rng(seed, f"coda-prompt/{name}").normal((len(p), every.shape[1])).to(every):
                v = v - (every @ v / every.square().sum(1)) @ every
                every = torch.cat([every, v[None] / v.norm()])
            out[name] = every[first:].reshape(p.shape).to(p)
    return out


def skewed(pools: Pools, weight: float) -> Tensor:
    """pools: ``site.P0``, ``site.P1``, ... (M, ...), the same of K and A."""
    each: dict[str, list[Tensor]] = {}
    for n, p in pools.items():
        each.setdefault(n.rstrip("0123456789"), []).append(p.flatten(1))
    every = [torch.cat(parts) for parts in each.values()]
    return weight * torch.stack([(b @ b.T - torch.eye(len(b)).to(b)).square().mean() for b in every]).sum()
