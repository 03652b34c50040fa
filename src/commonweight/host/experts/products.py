"""Rows times the weight of the group that each belongs to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def product(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Rows of group i times w[i]^T. Shapes: x (S, inp), group after group; w (n, out, inp); ends (n,) int32, where each
    group ends -> (S, out), in the dtype of w. Empty groups cost next to nothing. Linear in: x and w, each alone.

    By torch's grouped product where it and its backward take the strides (multiples of 16 bytes), else group by group.
    """
    x = x.to(w.dtype)
    if hasattr(F, "grouped_mm") and _fits(x) and _fits(w) and w.shape[1] * w.element_size() % 16 == 0:
        return _contiguous(F.grouped_mm(x, w.mT, offs=ends))
    return ByGroup.apply(x, w, ends)  # type: ignore[no-any-return]


def _fits(t: Tensor) -> bool:
    """Whether the grouped product takes it: one of the last two strides 1, all others multiples of 16 bytes."""
    *rest, a, b = t.stride()
    inner, outer = (b, a) if b == 1 else (a, b)
    return inner == 1 and all(s * t.element_size() % 16 == 0 for s in (outer, *rest)) and t.data_ptr() % 16 == 0


def _contiguous(y: Tensor) -> Tensor:
    """The same, whose gradient comes as a tensor of its own: one that is expanded, as of a sum, the backward pass of
    `grouped_mm` does not take (torch 2.13)."""
    return Whole.apply(y) if y.requires_grad else y  # type: ignore[no-any-return]


class Whole(torch.autograd.Function):
    """y, with a gradient that is laid out in full."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g.contiguous()


class ByGroup(torch.autograd.Function):
    """`product`, one multiplication a group that has rows. Nothing is kept but x and w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.pieces = pieces(ends)
        y = x.new_zeros(x.shape[0], w.shape[1])
        for i, a, b in ctx.pieces:
            torch.mm(x[a:b], w[i].t(), out=y[a:b])
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        dx = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.zeros_like(w) if ctx.needs_input_grad[1] else None
        for i, a, b in ctx.pieces:
            if dx is not None:
                torch.mm(g[a:b], w[i], out=dx[a:b])
            if dw is not None:
                torch.mm(g[a:b].t(), x[a:b], out=dw[i])
        return dx, dw, None


def pieces(ends: Tensor) -> list[tuple[int, int, int]]:
    """(group, first row, row after the last) of each group that has rows."""
    at = [0, *ends.tolist()]
    return [(i, a, b) for i, (a, b) in enumerate(pairwise(at)) if b > a]
