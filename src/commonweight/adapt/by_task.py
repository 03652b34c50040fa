"""Rows of several tasks for one tenant that goes by tasks: a column says each row's, and every batch says them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..core import CommonweightError, unknown
from ..host import Host, Tenant
from .tasks import Example


@contextmanager
def answering(host: Host, name: str | None) -> Iterator[nn.Module]:
    """What answers as the tenant, within: the model under its route; of one that goes by tasks a module that is told
    the task of each row."""
    if name is not None and host[name].tasks:
        yield host.module(name)
        return
    with host.route(name):
        yield host.model


def know(tenant: Tenant, doing: Any, *parts: Sequence[Example]) -> None:
    """Tells a task which number each of the tenant's tasks has. Raises: CommonweightError where rows name tasks that
    the tenant does not know, or none where it goes by them."""
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
