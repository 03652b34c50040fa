"""ConPET: a LoRA a task, and one more that tells which task a row is of, trained on kept rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...adapt.tasks import Classify
from ...adapt.tasks.base import Example
from ...core import config, option
from ..asks import Carried, Run, Stage, Train
from ..memory import kept
from ..registry import method
from ..training import logits_of


@config
class ConPET:
    adapter: str = option("lora", "the method that is trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")
    rows: int = option(64, "rows of each task that are kept, for the selector alone", ge=1)
    batches: int = option(100, "batches that the selector is trained on after a task, however many there are", ge=1)


SELECTOR = "task-selector"


def pick(at: Stage, had: Carried, rows: Sequence[Example]) -> list[str]:
    """The task that the selector says; k = 1."""
    if SELECTOR not in had.tenants:
        return [next(iter(had.tenants))] * len(rows)
    tenant = had.tenants[SELECTOR]
    said = logits_of(at.host, tenant, at.task, rows, at.recipe.eval_rows).argmax(1)
    names = tenant.labels or ("",)
    return [names[i] for i in said.tolist()]


@method(
    "conpet",
    ConPET,
    paper="ConPET: Continual Parameter-Efficient Tuning for Large Language Models, arXiv 2309.14763",
    carries="a tenant a task, the selector, and the kept rows",
    grows="a tenant, a class of the selector, and `rows` rows",
    rows="`rows` of each task, for the selector",
    id=483,
    tasks=("classify",),
    goes_on=False,
    pick=pick,
)
def stage(at: Stage, had: Carried) -> Run:
    """Dynamic ConPET: each task trains a tenant of its own; then the selector, a tenant that classifies rows by their
    task, trains on from where it stood, with a further class, on a fixed number of batches of kept rows of all tasks.

    Cost: the selector's training is the same however many tasks there are; telling a row's task is one more pass.
    Source: arXiv 2309.14763, section 3.3; github.com/Raincleared-Song/ConPET @1a37c13. Differs: `rows` rows a task are
    kept, where theirs keeps all and bounds the batches alone; the selector reads the pooled features, and its head is
    begun anew; numbers of rows and batches are ours. Static ConPET is `replay`.
    """
    trained = yield Train()
    rows = kept(had.rows, at.train, at.config.rows, at.recipe.seed, at.name)
    tenants = {n: t for n, t in had.tenants.items() if n != SELECTOR}
    tenants[at.name] = trained.tenants[at.name]
    if len(tenants) > 1:
        names = [n for n in tenants]
        task: Any = Classify(at.task.tokenizer, at.task.max_length, names)  # type: ignore[attr-defined]
        every = [{**r, "label": i} for i, n in enumerate(names) for r in rows[n]]
        epochs = max(1.0, at.config.batches * at.recipe.batch_size / len(every))
        told = yield Train(
            name=SELECTOR, start=had.tenants.get(SELECTOR), doing=task, rows=every, recipe={"epochs": epochs}
        )
        tenants[SELECTOR] = told.tenants[SELECTOR]
    return had._replace(tenants=tenants, rows=rows)
