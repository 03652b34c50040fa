"""One tenant a task: nothing is forgotten, nothing is shared."""

from __future__ import annotations

from ...core import config, option
from ..asks import Carried, Run, Stage, Train
from ..registry import method


@config
class Separate:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


@method(
    "separate",
    Separate,
    paper="the baseline `independent` of Gradient Episodic Memory for Continual Learning, arXiv 1706.08840",
    carries="nothing",
    grows="a tenant",
    goes_on=False,
)
def stage(at: Stage, had: Carried) -> Run:
    """Each task trains a tenant of its own, from the base."""
    trained = yield Train()
    return had._replace(tenants={**had.tenants, at.name: trained.tenants[at.name]})
