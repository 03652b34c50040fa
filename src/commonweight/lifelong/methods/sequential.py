"""Sequential fine-tuning: one tenant goes on from task to task. The lower bound that every method is held against."""

from __future__ import annotations

from ...core import config, option
from ..asks import Carried, Run, Stage, Train, rebodied
from ..registry import method


@config
class Sequential:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


@method(
    "sequential",
    Sequential,
    paper="the baseline of Gradient Episodic Memory for Continual Learning, arXiv 1706.08840",
    carries="the tenant's pools",
    grows="a head",
)
def stage(at: Stage, had: Carried) -> Run:
    """Each task trains the pools that the one before left; a new head, a new optimizer. Earlier tasks are answered by
    the newest pools with their own heads."""
    trained = yield Train(start=newest(had))
    mine = trained.tenants[at.name]
    return had._replace(tenants={**rebodied(had.tenants, mine), at.name: mine})


def newest(had: Carried):
    """The tenant that was trained last; None before the first task."""
    return [*had.tenants.values()][-1] if had.tenants else None
