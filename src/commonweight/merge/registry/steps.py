"""What a pass does, as data: where a method tells it, a compiled loop does the same as its functions, to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Cut:
    """Of the task vectors stays what comes before the cut of a search; with two cuts, what lies between them.

    finds: what the search found, of each model; scope: whether places count in the tensor or in the model.
    """

    finds: Any
    scope: Literal["tensor", "model"]
    which: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Drop:
    """Of the task vectors stays what is drawn.

    density: the chance of being kept, each model's. epsilon: how it spreads over the ranks of a row, as DELLA has it;
    rising: as mergekit has it. What stays is divided by its chance (scaled), or multiplied by its model's factor.
    """

    density: tuple[float, ...]
    seed: int
    scaled: bool = False
    factors: tuple[float, ...] | None = None
    epsilon: float | None = None
    rising: bool = False


@dataclass(frozen=True)
class Merge:
    """left: what of the task vectors stays.

    how: the average of the models; the sum of the task vectors, onto the base; or their elected sum or mean, onto it.
    weights: of the models, or of the task vectors. elect, zero, divide: as `agreeing` takes them. scale: of what is
    elected; rounded: how often the result is, when scaled and added.
    """

    how: Literal["average", "onto", "elect"]
    weights: tuple[float, ...]
    left: Cut | Drop | None = None
    elect: Literal["plain", "weighted"] = "plain"
    zero: int = 0
    divide: Literal["weights", "count", "one"] = "weights"
    scale: float = 1.0
    rounded: int = 1


@dataclass(frozen=True)
class Compete:
    """What PCB merges. bounds, scores: quantiles of |tau|, and of the scores, that each model's are held between."""

    bounds: tuple[tuple[float, float], ...]
    scores: tuple[tuple[float, float], ...]
    weights: tuple[float, ...]
    scale: float


@dataclass(frozen=True)
class Squares:
    """The sums of squares of the task vectors (T,), of the piece in float32 as torch adds them, then in float64."""


@dataclass(frozen=True)
class Norms:
    """The L1 norms of weighted sums of the task vectors, one for each row of weights; added up like `Squares`."""

    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Count:
    """A round of the searches `finds`, over values of the task vectors: -|tau|, |tau|, PCB's scores by `bounds`, or the
    numbers that are given in their place."""

    finds: Any
    scope: Literal["tensor", "model"]
    values: Literal["falling", "sizes", "scores", "given"] = "falling"
    bounds: tuple[tuple[float, float], ...] = ()


Round = Count | Squares | Norms
Piece = Merge | Compete
