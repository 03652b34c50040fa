"""What stands in front of a row: keys and values in each attention, or tokens as vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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
    """Vectors of tokens in front of a row, as they are. leads: in an encoder the first of them stands in the row's
    first place, where heads read, and the row's own first token elsewhere. Shapes: E (m, d). Linear in: E."""

    leads: bool = False

    def front(self, E: Tensor) -> Tensor:
        return E

    def places(self, E: Tensor) -> int:
        return E.shape[0]


@serial
@dataclass(frozen=True)
class ProjectedTokens:
    """E' = W3 relu(W2 relu(W1 E + b1) + b2) + b3. Shapes: E (m, e), W1 (h, e), W2 (h, h), W3 (d, h), b1, b2, b3.

    leads: as in `SoftTokens`. Linear in: W3 and b3, each alone. Cost: m h (e + h + d) products a pass of the prompt.
    """

    leads: bool = False

    def front(self, E: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, W3: Tensor, b3: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(torch.relu(F.linear(E, W1, b1)), W2, b2)), W3, b3)

    def places(self, E: Tensor, **_: Tensor) -> int:
        return E.shape[0]


@serial
@dataclass(frozen=True)
class PromptPool:
    """Keys and values that a row asks a pool of M prompts for, by cosines of its query with their keys.

    top: the prompts of so many largest cosines stand behind one another; 0: the sum of all, each times its cosine.
    Shapes: query (B, d), P (M, 2, m, w), K (M, d), and A (M, d) where the query is multiplied by it first; each in
    parts P0, P1, ..., one behind the other -> K and V (B, top m, w), or (B, m, w). Linear in: P, given the keys. by:
    whose mean the query is, "base" of what the plain base's last block gives, "embeddings" of the input embeddings (of
    a decoder those of the prompt).
    Cost: B M d products for the cosines, of the sum B M 2 m w, and m more keys for each prompt.
    """

    top: int = 0
    by: str = "base"
    asks: ClassVar[bool] = True
    precise: ClassVar[bool] = True  # cosines decide who is taken
    tokenwise: ClassVar[bool] = False

    @property
    def context(self) -> str:
        return self.by if self.by == "embeddings" else ""

    def cosines(self, query: Tensor, **slots: Tensor) -> Tensor:
        """(B, M)."""
        asked = query[:, None] * in_parts("A", slots) if "A0" in slots else query[:, None]
        return F.cosine_similarity(asked, in_parts("K", slots)[None], -1)

    def ahead(self, query: Tensor, **slots: Tensor) -> tuple[Tensor, Tensor]:
        P, said = in_parts("P", slots), self.cosines(query, **slots)
        if self.top:
            found = P[said.topk(self.top, -1).indices]  # (B, top, 2, m, w)
            return found[:, :, 0].flatten(1, 2), found[:, :, 1].flatten(1, 2)
        k, v = torch.einsum("bp,pcmw->cbmw", said, P)
        return k, v

    def places(self, **slots: Tensor) -> int:
        return slots["P0"].shape[2] * (self.top or 1)


def in_parts(kind: str, slots: Mapping[str, Tensor]) -> Tensor:
    """The parts of one kind, one behind the other."""
    parts = [slots[f"{kind}{i}"] for i in range(len(slots)) if f"{kind}{i}" in slots]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
