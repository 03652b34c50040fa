"""A task on which a model is another one of its many at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .base import Example


class Sampled:
    """The task, before whose loss `draw` is called; measures are of the model that `back` makes it again."""

    mixes = False

    def __init__(self, task: Any, draw: Callable[[], None], back: Callable[[], None]):
        self.task, self.draw, self.back = task, draw, back

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)

    def examples(self, rows: Sequence[Any]) -> list[Example]:
        return self.task.examples(rows)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.draw()
        return self.task.loss(model, batch)

    def measure(self, model: nn.Module, examples: list[Example], batch_size: int) -> dict[str, float]:
        self.back()
        return self.task.measure(model, examples, batch_size)
