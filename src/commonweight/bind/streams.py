"""Several streams of one input: a model that runs for each row as many times as there are streams."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import serial


@serial
@dataclass(frozen=True)
class Streams:
    """Of the first block: its input stands there n times, stream after stream. From there on all rows are n times."""

    n: int


@serial
@dataclass(frozen=True)
class Prefixes:
    """Of an attention: stream i attends to keys and values of its own before all tokens, which carry no position.

    Shapes: keys, values (n, p, kv), kv = key-value heads times their size. Reads nothing where p is 0.
    """

    n: int


@serial
@dataclass(frozen=True)
class Gathered:
    """Of the last norm: y = sum_i a_i h_i over the streams, a = (1 - s) softmax(W2 silu(W1 h + b1) + b2) + s / n, h
    the features of all streams, those of one number side by side.

    Shapes: W1 (d, d n), b1 (d,), W2 (n, d), b2 (n,). Cost a token: n d^2 + n d products.
    """

    n: int
    smooth: float
