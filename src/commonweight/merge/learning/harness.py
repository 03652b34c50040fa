"""lm-evaluation-harness on a merged model: an optional package, asked once, its results as plain rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core import CommonweightError, unknown


class Score(NamedTuple):
    """One figure. error: its standard error where the harness gives one; n: rows; of: the file, or the harness."""

    task: str
    metric: str
    value: float
    error: float | None
    n: int | None
    of: str


def manager(tasks: Sequence[str], include: str | Path | None = None) -> Any:
    """The harness's list of tasks, with all of `tasks` in it. include: a folder of task definitions of one's own.

    Raises: CommonweightError where the harness is not installed, or has no such task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise CommonweightError(
            f"--eval {tasks[0]} needs lm-evaluation-harness ({e}): pip install 'commonweight[eval]'; "
            "a classification task is NAME=FILE"
        ) from e
    if include is not None and not Path(include).is_dir():
        raise CommonweightError(f"--eval-tasks {include}: no such folder")
    found = TaskManager(include_path=None if include is None else str(include))
    for task in tasks:
        if task not in found.all_tasks:
            raise unknown("task of lm-evaluation-harness", task, found.all_tasks)
    return found


def run(model: Any, tasks: Sequence[str], known: Any, *, limit: int | None, batch_size: int) -> list[Score]:
    """model: a folder, or (model, tokenizer). known: of `manager`. limit: rows a task at most."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from ...adapt.base import pick_device

    how: dict[str, Any] = {"batch_size": batch_size, "device": pick_device()}
    if isinstance(model, tuple):
        held = HFLM(pretrained=model[0], tokenizer=model[1], **how)
    else:
        held = HFLM(pretrained=str(model), **how)
    found = lm_eval.simple_evaluate(model=held, tasks=list(tasks), limit=limit, task_manager=known)
    if found is None:
        raise CommonweightError("lm-evaluation-harness gave no result; it runs in one process only here")
    return rows(found)


def rows(found: Mapping[str, Any]) -> list[Score]:
    """Its keys are "metric,filter" and "metric_stderr,filter"."""
    out = []
    for task, row in found["results"].items():
        n = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in row.items():
            metric, comma, filter_ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = row.get(f"{metric}_stderr,{filter_}")
            name = metric if filter_ == "none" else key
            error = float(error) if isinstance(error, int | float) else None
            out.append(Score(task, name, float(value), error, n, "lm-evaluation-harness"))
    return out
