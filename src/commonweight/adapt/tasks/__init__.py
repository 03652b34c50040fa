"""What a tenant is trained for. A task turns rows into examples, a batch into a loss, a set of rows into metrics."""

from __future__ import annotations

from typing import Any

from ...core import CommonweightError, unknown
from .base import Example, Seen, Task
from .classify import Classify
from .embed import Embed
from .lm import LM
from .preferences import Marked, Pairs, Prompts
from .senses import Senses

TASKS: dict[str, type[Any]] = {
    "classify": Classify, "embed": Embed, "lm": LM, "dpo": Pairs, "orpo": Pairs, "kto": Marked, "grpo": Prompts,
}  # fmt: skip
_PROMPTS, _COMPLETIONS = ("lm", "dpo", "orpo", "kto", "grpo"), ("lm", "kto")


def get(task: str) -> type[Task]:
    if task not in TASKS:
        raise unknown("task", str(task), TASKS)
    return TASKS[task]


def check_columns(task: str, prompt_column: str | None, completion_column: str | None) -> None:
    """Raises: CommonweightError where a prompt or a completion is named for a task that has none."""
    for what, name, tasks in (("prompt", prompt_column, _PROMPTS), ("completion", completion_column, _COMPLETIONS)):
        if name is not None and task not in tasks:
            raise CommonweightError(
                f"--{what}-column {name}: the task {task} has no {what}; --task lm is trained on pairs of them"
            )


__all__ = ["LM", "TASKS", "Classify", "Embed", "Example", "Prompts", "Seen", "Senses", "Task", "check_columns", "get"]
