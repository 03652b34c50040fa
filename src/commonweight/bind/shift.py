"""Plain additive changes: w' = w + dw, b' = b + db. For norms, biases, and full deltas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial


@serial
@dataclass(frozen=True)
class Shift:
    """Shapes: dw as the weight, db (d_out,), both optional. The host's reference form runs it on a norm."""

    scale: float = 1.0

    def weight(self, w: Tensor, dw: Tensor | None = None, db: Tensor | None = None) -> Tensor:
        return w if dw is None else w + self.scale * dw

    def bias(self, b: Tensor, dw: Tensor | None = None, db: Tensor | None = None) -> Tensor:
        return b if db is None else b + self.scale * db

    def reads(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, bool]:
        return (None if "dw" in shapes else 0), True


@serial
@dataclass(frozen=True)
class BiasShift:
    """b' = b + db and nothing else. Shapes: db (d_out,). Cost: T d_out additions."""

    anywhere: ClassVar[str] = "output"

    def weight(self, w: Tensor, db: Tensor) -> Tensor:
        return w

    def bias(self, b: Tensor, db: Tensor) -> Tensor:
        return b + db

    def reads(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, bool]:
        return 0, True

    def output(self, x: Tensor, y: Tensor, base: Base, db: Tensor) -> Tensor:
        return y + db

    def grouped(self, x: Tensor, y: Tensor, base: Base, db: Tensor) -> Tensor:
        return y + db[:, None]


@serial
@dataclass(frozen=True)
class Classify:
    """The head of a classification task: logits = x W^T + b. Shapes: W (labels, d), b (labels,)."""

    def output(self, x: Tensor, y: Tensor, base: Base, W: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, W, b)
