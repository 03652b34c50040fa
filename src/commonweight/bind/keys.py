"""A large table of values, of which each token reads a few that it finds by product keys."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import serial


@serial
@dataclass(frozen=True)
class ProductKeys:
    """y = sum over heads and the k best (i, j) of softmax(q1 . key1_i + q2 . key2_j) value_(i n + j), q = (q1, q2).

    Shapes: query (heads c, d) and query_bias (heads c,), keys (2, heads, n, c / 2), values (n^2, d). beside: added to
    what the module does; else in its place. Linear in: values. Cost a token: heads c (d + n) products, and k d reads a
    head. Source: arXiv 1907.05242, section 3.1; code facebookresearch/memory.
    """

    heads: int
    k: int
    beside: bool = False
