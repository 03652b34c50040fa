"""Share: the first task finds directions, and each later one combines them with a few numbers of its own."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..asks import Carried, Run, Stage, Train
from ..registry import method


@config
class Share:
    k: int = option(32, "directions of each basis, and at most the width", ge=1)
    rank: int = option(4, "rank p of a task's update, and at most k", ge=1)


def adapter(config: Share) -> tuple[str, dict[str, Any]]:
    return "share", {"k": config.k, "rank": config.rank}


@method(
    "share",
    Share,
    paper="Shared LoRA Subspaces for almost Strict Continual Learning, arXiv 2602.06043",
    adapter=adapter,
    carries="the bases that the first task left, and of each task its coefficients",
    grows="2 k p numbers a layer, and a head",
    id=465,
)
def stage(at: Stage, had: Carried) -> Run:
    """The first task trains bases and coefficients, each later one coefficients alone; it forgets nothing.

    Cost: as the adapter `share`. Source: arXiv 2602.06043, by two summaries: its text and code were not available.
    Differs: the bases are those of the first task's training, where the paper takes the principal directions of
    finished adapters, and they do not grow from task to task (`methods.share.temporary` grows them).
    """
    first = next(iter(had.tenants.values()), None)
    bases = {} if first is None else {n: p for n, p in first.pools.items() if ".basis_" in n}
    trained = yield Train(values=bases, still=frozenset(bases))
    return had._replace(tenants={**had.tenants, at.name: trained.tenants[at.name]})
