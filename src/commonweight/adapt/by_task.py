"""Rows of several tasks for one tenant that goes by tasks: a column says each row's, and every batch says them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..core import CommonweightError, counted, unknown
from ..host import Host, Tenant
from .tasks import Example
from .tasks.lm import LM
from .tasks.scored import IGNORE


@contextmanager
def answering(host: Host, name: str | None) -> Iterator[nn.Module]:
    """What answers as the tenant, within: the model under its route; of one that goes by tasks or by prompts a module
    that is told them of each row."""
    if name is not None and (host[name].tasks or host[name].prompted):
        yield host.module(name)
        return
    with host.route(name):
        yield host.model


def know(tenant: Tenant, doing: Any, *parts: Sequence[Example]) -> None:
    """Tells a task which number each of the tenant's tasks has, and whether batches are to say prompts. Raises:
    CommonweightError where rows name tasks that the tenant does not know, or none where it goes by them, and as
    `_prompts`."""
    if tenant.prompted:
        _prompts(tenant, doing, [e for part in parts for e in part])
    found = {e["task"]: None for part in parts for e in part if "task" in e}
    if tenant.tasks and not found:
        raise CommonweightError(
            f"{tenant.method.name} goes by tasks, {', '.join(tenant.tasks)}, and no column of the rows says which; "
            "name it with task_column (--task-column), in a classification"
        )
    if found and not tenant.tasks:
        named = ",".join(found)
        raise CommonweightError(
            f"task_column: {tenant.method.name} knows no tasks as it was asked for; give tasks={named} to poly, "
            "cpoly or tensorpoly, or leave the column out"
        )
    if wrong := [t for t in found if t not in tenant.tasks]:
        raise unknown("task in the column of tasks", wrong[0], tenant.tasks)
    doing.tasks = tenant.tasks


def _prompts(tenant: Tenant, doing: Any, rows: Sequence[Example]) -> None:
    """Raises: CommonweightError for another task than completions of prompts, and where a row has no prompt."""
    goes = f"{tenant.method.name} goes by the embedding of a row's prompt"
    if not isinstance(doing, LM):
        raise CommonweightError(f"{goes}, and in a decoder the task lm alone says where one ends; take another method")
    if bare := sum(e["labels"][0] != IGNORE for e in rows):
        raise CommonweightError(
            f"{goes}, and {bare} of {counted(len(rows), 'row')} have none: what is scored begins with their first "
            "token; give prompts and completions (--prompt-column, --completion-column) or chats, which have one"
        )
    doing.by_prompt = True
