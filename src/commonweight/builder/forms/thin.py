"""An embedding and an output layer whose table is narrower than the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


class Thin:
    """y = table[id] map, times the layer's own factor where it has one: table (V, r), map (r, d)."""

    composed = True

    def forward(self: Any, ids: Tensor) -> Tensor:
        y = F.embedding(ids, self.table, self.padding_idx) @ self.map
        scale = getattr(self, "embed_scale", None)
        return y if scale is None else y * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)

    @property
    def weight(self: Any) -> Tensor:
        return self.table @ self.map

    def composed_weight(self) -> Tensor:
        return self.weight


class ThinHead:
    """y = (x down^T) table^T + b: table (V, r), down (r, d)."""

    composed = True

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.table, self.bias)

    @property
    def weight(self: Any) -> Tensor:
        return self.table @ self.down

    def composed_weight(self) -> Tensor:
        return self.weight
