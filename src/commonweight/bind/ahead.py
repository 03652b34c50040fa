"""What stands in front of a row: keys and values in each attention, or tokens as vectors."""

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


@serial
@dataclass(frozen=True)
class SoftTokens:
    """Vectors of tokens in front of a row, as they are. Shapes: E (m, d). Linear in: E."""

    def front(self, E: Tensor) -> Tensor:
        return E

    def places(self, E: Tensor) -> int:
        return E.shape[0]


@serial
@dataclass(frozen=True)
class ProjectedTokens:
    """E' = W3 relu(W2 relu(W1 E + b1) + b2) + b3. Shapes: E (m, e), W1 (h, e), W2 (h, h), W3 (d, h), b1, b2, b3.

    Linear in: W3 and b3, each alone. Cost: m h (e + h + d) products a pass of the prompt.
    """

    def front(self, E: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, W3: Tensor, b3: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(torch.relu(F.linear(E, W1, b1)), W2, b2)), W3, b3)

    def places(self, E: Tensor, **_: Tensor) -> int:
        return E.shape[0]
