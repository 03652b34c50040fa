"""Rows times the weight of the group that each belongs to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 16  # rows of a group, for one batched product of all of them
_GROUPED = (torch.float32, torch.bfloat16, torch.float16)


def product(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Rows of group i times w[i]^T. Shapes: x (S, inp), group after group; w (n, out, inp); ends (n,) int32, where each
    group ends -> (S, out), in the dtype of w. Empty groups cost next to nothing. Linear in: x and w, each alone.

    By torch's grouped product where it and its backward take the strides (multiples of 16 bytes), else group by group.
    """
    x = x.to(w.dtype)
    if hasattr(F, "grouped_mm") and _fits(x) and _fits(w) and w.shape[1] * w.element_size() % 16 == 0:
        y = F.grouped_mm(x, w.mT, offs=ends)
        return Whole.apply(y) if y.requires_grad else y  # type: ignore[no-any-return]
    return ByGroup.apply(x, w, ends)  # type: ignore[no-any-return]


def by_size(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """`product` without gradients, of groups in order of their size: those of a few rows are one batched product for
    each size, four times as fast on a CPU as a product for each."""
    at, out = [0, *ends.tolist()], x.new_empty(len(x), w.shape[1], dtype=w.dtype)
    x, i, n = x.to(w.dtype), 0, w.shape[0]
    while i < n:
        size, first = at[i + 1] - at[i], i
        while i < n and at[i + 1] - at[i] == size and size <= FEW:
            i += 1
        if i == first:
            out[at[i] :] = product(x[at[i] :], w[i:], ends[i:] - at[i])
            break
        a, b = at[first], at[i]
        part = torch.bmm(x[a:b].view(i - first, size, x.shape[1]), w[first:i].mT)
        out[a:b] = part.view(b - a, w.shape[1])
    return out


def between(g: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """The gradient of w in `product`: g[i]^T x[i] of every group. Shapes: g (S, out), x (S, inp) -> (n, out, inp)."""
    x = x.to(g.dtype)
    if hasattr(F, "grouped_mm") and _fits(x) and _fits(g):
        return F.grouped_mm(g.mT, x, offs=ends)
    out = g.new_zeros(len(ends), g.shape[1], x.shape[1])
    for i, a, b in pieces(ends):
        torch.mm(g[a:b].t(), x[a:b], out=out[i])
    return out


def _fits(t: Tensor) -> bool:
    """Whether the grouped product takes it: one of the last two strides 1, all others multiples of 16 bytes."""
    *rest, a, b = t.stride()
    inner, outer = (b, a) if b == 1 else (a, b)
    aligned = all(s * t.element_size() % 16 == 0 for s in (outer, *rest)) and t.data_ptr() % 16 == 0
    return inner == 1 and aligned and t.dtype in _GROUPED


class Whole(torch.autograd.Function):
    """y, with a gradient that is laid out in full: one that is expanded, as of a sum, the backward pass of torch's
    `grouped_mm` does not take (torch 2.13)."""

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
        ctx.save_for_backward(x, w, ends)
        y = x.new_zeros(x.shape[0], w.shape[1])
        for i, a, b in pieces(ends):
            torch.mm(x[a:b], w[i].t(), out=y[a:b])
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, w, ends = ctx.saved_tensors
        dx = product(g.contiguous(), w.mT, ends) if ctx.needs_input_grad[0] else None
        dw = between(g.contiguous(), x, ends) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def pieces(ends: Tensor) -> list[tuple[int, int, int]]:
    """(group, first row, row after the last) of each group that has rows."""
    at = [0, *ends.tolist()]
    return [(i, a, b) for i, (a, b) in enumerate(pairwise(at)) if b > a]
