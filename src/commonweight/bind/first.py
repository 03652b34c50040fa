"""A change of a table that has grown since: the entries that were added are the base's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Base


@dataclass(frozen=True)
class First:
    """What `bind` makes of the first n entries of a table (d, V); the others stay. Cost of `output`: the bind's."""

    bind: Any
    n: int

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return torch.cat([self.bind.weight(w[:, : self.n], **slots), w[:, self.n :]], 1)

    @property
    def precise(self) -> bool:
        return getattr(self.bind, "precise", False)

    @property
    def anywhere(self) -> str:
        return getattr(self.bind, "anywhere", "")

    @property
    def output(self) -> Any:
        return self._output if getattr(self.bind, "output", None) is not None else None

    def _output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return torch.where(x < self.n, self.bind.output(x.clamp_max(self.n - 1), y, base, **slots), y)
