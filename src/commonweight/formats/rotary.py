"""Rows of a query or key in the two orders of rotary pairs: halves of a head (transformers), or neighbours (Meta's
code, torchtune, llama.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import CommonweightError, counted


def neighbours(rows: Tensor, heads: int, where: str) -> Tensor:
    """From halves to neighbours. rows (out, ...). Raises: CommonweightError where they are no heads of pairs."""
    return rows[_order(rows, heads, where)]


def halves(rows: Tensor, heads: int, where: str) -> Tensor:
    """From neighbours to halves: the inverse."""
    return rows[_order(rows, heads, where).argsort()]


def _order(rows: Tensor, heads: int, where: str) -> Tensor:
    if heads < 1 or rows.shape[0] % (2 * heads):
        raise CommonweightError(
            f"{where}: {rows.shape[0]} rows are not {counted(heads, 'head')} of pairs; made for another model"
        )
    return torch.arange(rows.shape[0]).view(heads, 2, -1).transpose(1, 2).reshape(-1)
