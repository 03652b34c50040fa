"""L2P: all tasks read one pool of prompts, and each row takes those whose keys are nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core import Site, config, option
from ..asks import Carried, Run, Stage, Train, rebodied
from ..registry import method
from .sequential import newest


@config
class L2P:
    prompts: int = option(10, "prompts M of the pool", ge=1)
    tokens: int = option(5, "keys and values of a prompt", ge=1)
    top: int = option(5, "prompts N that a row takes", ge=1)
    pull: float = option(0.5, "lambda: weight of the keys' distance to the rows that take them", ge=0)
    attentions: int = option(5, "attentions, from the first on, that have prompts", ge=1)


def adapter(config: L2P) -> tuple[str, dict[str, Any]]:
    how = {"prompts": config.prompts, "tokens": config.tokens, "top": config.top, "pull": config.pull}
    return "prompt-pool", {"read": "top", **how}


def where(config: L2P, sites: Sequence[Site]) -> Sequence[Site]:
    return sites[: config.attentions]


@method(
    "l2p",
    L2P,
    paper="Learning to Prompt for Continual Learning, CVPR 2022, arXiv 2112.08654",
    adapter=adapter,
    carries="the pool of prompts and their keys",
    grows="a head",
    tasks=("classify",),
    where=where,
)
def stage(at: Stage, had: Carried) -> Run:
    """One pool for all tasks, which trains on. Loss + pull * sum over the N prompts that a row takes of 1 - cos(x, K).

    Nothing holds a prompt that earlier tasks took, but that rows unlike theirs take others. Cost: as `prompt-pool`, a
    pass of the base more a step. Source: arXiv 2112.08654; github.com/google-research/l2p: M, N and length of its
    configs/cifar100_l2p.py @8cfb210 (the newer @3e102b0 has N = 4, length 10), lambda of configs/five_datasets_l2p.py.
    Differs: prompts are prefixes in the first five attentions, as CODA-Prompt's code has it ("deep"), where theirs
    stand before the first layer and a head reads their mean; a head a task; rows choose alone, where its configurations
    take a batch's majority; what `prompt-pool` says of the query.
    """
    trained = yield Train(start=newest(had))
    mine = trained.tenants[at.name]
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine})
