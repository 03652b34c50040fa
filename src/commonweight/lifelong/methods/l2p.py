"""L2P: all tasks read one pool of prompts, and each row takes those whose keys are nearest to it."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..asks import Carried, Run, Stage, Train, rebodied
from ..registry import method
from .sequential import newest


@config
class L2P:
    prompts: int = option(10, "prompts M of the pool", ge=1)
    tokens: int = option(5, "keys and values of a prompt", ge=1)
    top: int = option(5, "prompts N that a row takes", ge=1)
    pull: float = option(0.5, "lambda: weight of the keys' distance to the rows that take them", ge=0)


def adapter(config: L2P) -> tuple[str, dict[str, Any]]:
    how = {"prompts": config.prompts, "tokens": config.tokens, "top": config.top, "pull": config.pull}
    return "prompt-pool", {"read": "top", **how}


@method(
    "l2p",
    L2P,
    paper="Learning to Prompt for Continual Learning, CVPR 2022, arXiv 2112.08654",
    adapter=adapter,
    carries="the pool of prompts and their keys",
    grows="a head",
    tasks=("classify",),
)
def stage(at: Stage, had: Carried) -> Run:
    """One pool for all tasks, which trains on. Loss + pull * sum over the N prompts that a row takes of 1 - cos(x, K).

    Nothing holds a prompt that earlier tasks took, but that rows unlike theirs take others. Cost: as `prompt-pool`, a
    pass of the base more a step. Source: arXiv 2112.08654, eqs. (2) to (5) and algorithm 1; its M, N, length and
    lambda. Differs: prompts are prefixes in every attention, where the paper's stand before the first layer; a head a
    task; what `prompt-pool` says of the query.
    """
    trained = yield Train(start=newest(had))
    mine = trained.tenants[at.name]
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine})
