"""The tasks that a route is asked for: one for all its readers, or one for each place."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import CommonweightError, WrongTask, counted

Task = str | int | None  # by name or number; None, and -1: none
Tasks = Task | Sequence[Any] | np.ndarray | Tensor  # of a route's rows, or of their tokens


def number(task: Any) -> int | None:
    """A task's number, of whatever kind of whole number it is; None for what is none: True and 1.0 are none."""
    if isinstance(task, bool) or (isinstance(task, Tensor) and (task.dim() or task.dtype == torch.bool)):
        return None
    try:
        return operator.index(task)
    except TypeError:
        return None


def unsaid(task: Any) -> bool:
    """Whether it says that there is no task."""
    return task is None or number(task) == -1


def listed(tasks: Tasks) -> tuple[list[Any], tuple[int, ...]]:
    """(the tasks in order, the shape they came in: () for one of all readers). Raises: CommonweightError for what is
    no list of tasks, or a ragged one."""
    if isinstance(tasks, Tensor):
        if tasks.is_floating_point() or tasks.is_complex() or tasks.dtype == torch.bool:
            raise CommonweightError(f"tasks are names, numbers or a LongTensor; this is {tasks.dtype}")
        return tasks.reshape(-1).tolist(), tuple(tasks.shape)
    if isinstance(tasks, np.ndarray):
        tasks = tasks.tolist()
    if not isinstance(tasks, list | tuple):
        return [tasks], ()
    if not any(isinstance(t, list | tuple) for t in tasks):
        return list(tasks), (len(tasks),)
    lengths = [len(t) if isinstance(t, list | tuple) else None for t in tasks]
    if len({*lengths}) > 1:
        raise CommonweightError(
            "tasks: a list of lists is a task for each token, so that each has as many as the others; this one has "
            f"{', '.join('one task' if n is None else str(n) for n in lengths[:8])}"
        )
    return [t for row in tasks for t in row], (len(tasks), lengths[0] or 0)


def spread(tasks: Tasks, shape: tuple[int, ...]) -> list[Any]:
    """A task for each place of readers of this shape, in order: one for all, one a row, or one a place.

    Raises: CommonweightError for tasks of another shape, and as `listed`."""
    each, mine = listed(tasks)
    if mine == ():
        return each * math.prod(shape)
    if mine == shape:
        return each
    if len(shape) == 2 and mine == shape[:1]:
        return [t for t in each for _ in range(shape[1])]
    if len(shape) == len(mine) == 1:
        told = f"{counted(shape[0], 'reader')} and {counted(mine[0], 'task')}; give one task per reader, or one for all"
    else:
        told = (
            f"readers of shape {shape} and tasks of shape {mine}; give tasks of that shape, one a row, or one for all"
        )
    raise CommonweightError(f"the route names {told}")


def none(tasks: Sequence[Any], where: str) -> None:
    """Raises: WrongTask where one is said of who knows none."""
    if (said := next((t for t in tasks if not unsaid(t)), None)) is not None:
        raise WrongTask(f"{where} knows no tasks, and {said!r} is said; leave it out")
