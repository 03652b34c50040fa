"""What a tenant is trained for. A task turns rows into examples, a batch into a loss, a set of rows into metrics."""

from __future__ import annotations

from ...core import CommonweightError, unknown
from .base import Example, Seen, Task
from .classify import Classify
from .embed import Embed
from .lm import LM

TASKS: dict[str, type[Task]] = {"classify": Classify, "embed": Embed, "lm": LM}


def get(task: str) -> type[Task]:
    if task not in TASKS:
        raise unknown("task", str(task), TASKS)
    return TASKS[task]


def check_columns(task: str, prompt_column: str | None, completion_column: str | None) -> None:
    """Raises: CommonweightError where a prompt or a completion is named for a task that has none."""
    asked = [("prompt", prompt_column), ("completion", completion_column)]
    if task != "lm" and (found := next(((what, c) for what, c in asked if c is not None), None)):
        raise CommonweightError(
            f"--{found[0]}-column {found[1]}: the task {task} has no {found[0]}; --task lm is trained on pairs of them"
        )


__all__ = ["LM", "TASKS", "Classify", "Embed", "Example", "Seen", "Task", "check_columns", "get"]
