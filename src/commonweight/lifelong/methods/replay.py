"""Experience replay: few rows of every task are kept, and shown again."""

from __future__ import annotations

from ...core import config, option
from ..asks import Carried, Run, Stage, Train, rebodied
from ..memory import kept
from ..registry import method
from .sequential import newest


@config
class Replay:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")
    rows: int = option(64, "rows of each task that are kept, drawn by the seed, of all classes alike", ge=1)
    temperature: float = option(
        3.0, "tasks are shown by (their rows) ** (1 / this): 1: a kept row once an epoch, large: all tasks alike", ge=1
    )  # fmt: skip


@method(
    "replay",
    Replay,
    paper="On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486",
    carries="the tenant's pools, and the kept rows",
    grows="a head and `rows` rows",
    rows="`rows` of each task",
)
def stage(at: Stage, had: Carried) -> Run:
    """Batches mix the new task's rows with kept ones of all earlier tasks, each with its own head, which trains on too.

    Source: arXiv 1902.10486, algorithm 1. Differs: batches are drawn from all sets at once, not half and half; the
    memory grows by `rows` a task in place of one ring for all.
    """
    more = {"temperature": at.config.temperature} if had.rows else {}
    trained = yield Train(start=newest(had), beside=had.rows, heads={n: had.tenants[n] for n in had.rows}, recipe=more)
    mine = trained.tenants[at.name]
    tenants = {**rebodied({**had.tenants, **trained.tenants}, mine), at.name: mine}
    rows = kept(had.rows, at.train, at.config.rows, at.recipe.seed, at.name)
    return had._replace(tenants={n: tenants[n] for n in (*had.tenants, at.name)}, rows=rows)
