"""A task on which a model is another one of its many at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .base import Example, Wrapped


class Sampled(Wrapped):
    """The task, before whose loss `draw` is called; measures are of the model that `back` makes it again."""

    def __init__(self, task: Any, draw: Callable[[], None], back: Callable[[], None]):
        super().__init__(task)
        self.draw, self.back = draw, back

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.draw()
        return self.task.loss(model, batch)

    def measure(self, model: nn.Module, examples: list[Example], batch_size: int) -> dict[str, float]:
        self.back()
        return self.task.measure(model, examples, batch_size)
