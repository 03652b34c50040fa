"""Joint training: the upper bound, which sees the rows of all tasks so far again."""

from __future__ import annotations

from ...core import CommonweightError, config, option
from ..asks import Carried, Run, Stage, Train
from ..bodies import fresh
from ..registry import method


@config
class Joint:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")
    every: bool = option(False, "train at every stage, T (T + 1) / 2 tasks in all; without it, at the file's last task")
    temperature: float = option(2.0, "rows of small tasks are shown by (their number) ** (1 / this)", ge=1)


@method(
    "joint",
    Joint,
    paper="the upper bound of Riemannian Walk for Incremental Learning, arXiv 1801.10112",
    carries="nothing: every stage starts from the base",
    grows="a head",
    rows="all, read from the files again",
)
def stage(at: Stage, had: Carried) -> Run:
    """One body and a head for each task, trained in mixed batches of the rows of all tasks so far."""
    if not (at.config.every or at.last):
        return had
    if lost := [n for n in at.tasks if n not in at.earlier and n != at.name]:
        raise CommonweightError(f"joint reads the rows of all tasks again, and those of {lost[0]} are gone")
    heads = {n: fresh(at, {}, n, at.tasks[n].labels, rows) for n, rows in at.earlier.items()}
    more = {"temperature": at.config.temperature} if heads else {}
    trained = yield Train(beside=at.earlier, heads=heads, recipe=more)
    return had._replace(tenants={n: trained.tenants[n] for n in at.tasks})
