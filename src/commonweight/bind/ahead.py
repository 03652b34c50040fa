"""Keys and values in front of those of an attention: a prefix that every token of a row reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import serial


@serial
@dataclass(frozen=True)
class KeysValues:
    """K and V as they are. Shapes: P (2, m, w), w the width over all heads of keys. Linear in: P. Cost: m more keys."""

    def ahead(self, P: Tensor) -> tuple[Tensor, Tensor]:
        return P[0], P[1]

    def places(self, P: Tensor) -> int:
        return P.shape[1]


@serial
@dataclass(frozen=True)
class ProjectedKeysValues:
    """(K, V) = W2 tanh(W1 E + b1) + b2. Shapes: E (m, e), W1 (h, e), b1 (h,), W2 (2 w, h), b2 (2 w,).

    Linear in: W2 and b2, each alone. Cost: m h (e + 2 w) products a pass, and m more keys.
    """

    def ahead(self, E: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
        k, v = F.linear(torch.tanh(F.linear(E, W1, b1)), W2, b2).chunk(2, -1)
        return k, v

    def places(self, E: Tensor, **_: Tensor) -> int:
        return E.shape[0]
