"""What a tenant is trained for. A task turns rows into examples, a batch into a loss, a set of rows into metrics."""

from __future__ import annotations

from ...core import unknown
from .base import Example, Seen, Task
from .classify import Classify
from .embed import Embed
from .lm import LM

TASKS: dict[str, type[Task]] = {"classify": Classify, "embed": Embed, "lm": LM}


def get(task: str) -> type[Task]:
    if task not in TASKS:
        raise unknown("task", str(task), TASKS)
    return TASKS[task]


__all__ = ["LM", "TASKS", "Classify", "Embed", "Example", "Seen", "Task", "get"]
