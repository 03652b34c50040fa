"""What an encoder answers: vectors, classes and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Input = str | Sequence[int]  # a text, or its token ids, which are taken as they are


@dataclass(frozen=True)
class Embedding:
    """vector: d numbers, of length 1 where that was asked for. error: why there is none."""

    vector: list[float]
    tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Classified:
    """label: the likeliest class. shares: of each class of `labels`, which add up to 1 where one of several holds."""

    label: str
    shares: list[float]
    labels: tuple[str, ...] = ()
    tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Ranked:
    """index: which of the documents. score: the higher the nearer to the query."""

    index: int
    score: float
    tokens: int = 0
    error: str | None = None
