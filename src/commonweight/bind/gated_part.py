"""A serial adapter after a part of a block, and a gate on all that the part gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial
from .one_expert import row_mean


def _layer(t: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """w t + b; of n readers where w and b have a leading n."""
    return t @ w.mT + b[..., None, :]


@serial
@dataclass(frozen=True)
class GatedPart:
    """y' = G z, z = y + up gelu(down y + down_bias) + up_bias; x what the part is given.

    gate: "large": G = sigmoid(gate_up gelu(gate_down x + gate_down_bias) + gate_up_bias), for each number; "token": G =
    sigmoid(gate (x + z) + gate_bias), for each token; "row": the mean over a row's tokens that are no padding of
    sigmoid(gate [x; z] + gate_bias), for each row; "channel": G = 1 + gate. GELU by tanh.
    Shapes: down (r, d), up (d, r), gate_down (q, d), gate_up (d, q), gate (d,), of "row" (2 d,), gate_bias (1,), biases
    as wide as their layer. Linear in: up and up_bias of "large" and "channel". Cost: 2 T r d products, and 2 T q d of
    "large". Raises, of "row": CommonweightError where nobody says which tokens are padding.
    Source: arXiv 2308.09804; github.com/HenryHZY/VL-PET.
    """

    gate: str

    @property
    def whole(self) -> bool:
        return self.gate == "row"

    @property
    def tokenwise(self) -> bool:
        return self.gate != "row"

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Any) -> Tensor:
        h = F.gelu(_layer(y, slots["down"], slots["down_bias"]), approximate="tanh")
        z = y + _layer(h, slots["up"], slots["up_bias"])
        if self.gate == "channel":
            return z * (1 + slots["gate"][..., None, :])
        if self.gate == "token":
            by = ((x + z) * slots["gate"][..., None, :]).sum(-1, keepdim=True) + slots["gate_bias"][..., None, :]
            return z * torch.sigmoid(by)
        if self.gate == "row":
            by = (torch.cat([x, z], -1) * slots["gate"][..., None, :]).sum(-1, keepdim=True)
            return z * row_mean(torch.sigmoid(by + slots["gate_bias"][..., None, :]), base)[:, None].to(z.dtype)
        h = F.gelu(_layer(x, slots["gate_down"], slots["gate_down_bias"]), approximate="tanh")
        return z * torch.sigmoid(_layer(h, slots["gate_up"], slots["gate_up_bias"]))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Any) -> Tensor:
        """`output` of n readers at once: x and y (n, T, d), every slot with a leading n."""
        return self.output(x, y, base, **slots)
