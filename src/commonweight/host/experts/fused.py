"""All of a mixture's experts in one step of the graph: up, gate, down and the weighing, each with low-rank changes.

Autograd would keep, for every routed row, its input, the gate's parts and what the expert answers. Here a forward keeps
what the up projection gave, and nothing else of that length; the rest is worked out again in backward, of which only
the gate costs anything. Rows go through in pieces of some experts, so that what is between has the size of a piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .products import between, product

PIECE = 2048  # rows at a time on a CPU


class Low(NamedTuple):
    """Changes of one projection. A (n, r, inp), B (n, out, r): of each (expert, reader) that has rows, in order."""

    A: Tensor
    B: Tensor


class Work(NamedTuple):
    """What does not get gradients. up, down: the frozen weights (E, out, inp); *_bias (E, out) or None. token (S,): of
    each row, and place (S,): of its weight in the flat list. expert (S,). ends (E,), lows (n,): where the rows of each
    expert, and of each change, end. chunks: (first expert, past the last, first change, past the last, first row, past
    the last)."""

    gate: Callable[[Tensor], Tensor]
    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    token: Tensor
    place: Tensor
    expert: Tensor
    ends: Tensor
    lows: Tensor
    chunks: list[tuple[int, int, int, int, int, int]]


def chunks(ends: list[int], lows: list[int], device: torch.device) -> list[tuple[int, int, int, int, int, int]]:
    """Pieces of whole experts, of `PIECE` rows or a little more; everything in one elsewhere than on a CPU."""
    most = PIECE if device.type == "cpu" else len(ends) and ends[-1]
    out, e0, p0, a, p = [], 0, 0, 0, 0
    for e, end in enumerate(ends):
        if end - a >= most or (e == len(ends) - 1 and end > a):
            while p < len(lows) and lows[p] <= end:
                p += 1
            out.append((e0, e + 1, p0, p, a, end))
            e0, p0, a = e + 1, p, end
    return out


class Through(torch.autograd.Function):
    """hidden (N, d), weights (N k,) and the factors of up and down (None for no change) -> (N, d)."""

    @staticmethod
    def forward(
        ctx: Any, work: Work, hidden: Tensor, weights: Tensor, A: Tensor | None, B: Tensor | None, C: Tensor | None,
        D: Tensor | None,
    ) -> Tensor:  # fmt: skip
        out = hidden.new_zeros(len(hidden), work.down.shape[1])
        kept = work.up.new_empty(len(work.token), work.up.shape[1])
        for chunk in work.chunks:
            a, b = chunk[4:]
            at = work.token[a:b]
            x = hidden.index_select(0, at)
            y = _linear(work.up, work.up_bias, A, B, x, work, chunk)
            kept[a:b] = y
            y = _linear(work.down, work.down_bias, C, D, work.gate(y), work, chunk)
            y = y * weights.index_select(0, work.place[a:b])[:, None]
            out.index_add_(0, at, y.to(out.dtype))
        ctx.work = work
        ctx.save_for_backward(hidden, weights, kept, A, B, C, D)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        work: Work = ctx.work
        hidden, weights, kept, A, B, C, D = ctx.saved_tensors
        inward = ctx.needs_input_grad[1]
        dx = torch.zeros_like(hidden) if inward else None
        dw = torch.zeros_like(weights)
        dA, dB, dC, dD = (None if t is None else torch.zeros_like(t) for t in (A, B, C, D))
        for chunk in work.chunks:
            _, _, p0, p1, a, b = chunk
            at, place = work.token[a:b], work.place[a:b]
            ends = work.lows[p0:p1] - a
            with torch.enable_grad():
                y = kept[a:b].detach().requires_grad_()
                h = work.gate(y)
            go = g.index_select(0, at).to(h.dtype)
            w = weights.index_select(0, place)[:, None]
            u = _back(work.down, C, D, go, work, chunk)
            bias = 0.0 if work.down_bias is None else (go * work.down_bias[work.expert[a:b]]).sum(1)
            dw.index_copy_(0, place, ((u * h.detach()).sum(1) + bias).to(dw.dtype))
            if C is not None:
                _factors(C, D, dC, dD, h.detach(), go * w, ends, p0, p1)
            (dy,) = torch.autograd.grad(h, y, (u * w).to(h.dtype))
            if A is not None:
                _factors(A, B, dA, dB, hidden.index_select(0, at), dy, ends, p0, p1)
            if dx is not None:
                dx.index_add_(0, at, _back(work.up, A, B, dy, work, chunk).to(dx.dtype))
        return None, dx, dw, dA, dB, dC, dD


def _linear(
    w: Tensor, bias: Tensor | None, A: Tensor | None, B: Tensor | None, x: Tensor, work: Work, chunk: tuple
) -> Tensor:
    e0, e1, p0, p1, a, b = chunk
    y = product(x, w[e0:e1], work.ends[e0:e1] - a)
    if bias is not None:
        y += bias[work.expert[a:b]]
    if A is not None and B is not None:
        ends = work.lows[p0:p1] - a
        y += product(product(x, A[p0:p1], ends), B[p0:p1], ends)
    return y


def _back(w: Tensor, A: Tensor | None, B: Tensor | None, g: Tensor, work: Work, chunk: tuple) -> Tensor:
    """g times the changed weights, not transposed."""
    e0, e1, p0, p1, a, _ = chunk
    d = product(g, w[e0:e1].mT, work.ends[e0:e1] - a)
    if A is not None and B is not None:
        ends = work.lows[p0:p1] - a
        d += product(product(g, B[p0:p1].mT, ends), A[p0:p1].mT, ends)
    return d


def _factors(
    A: Tensor, B: Tensor, dA: Tensor | None, dB: Tensor | None, x: Tensor, g: Tensor, ends: Tensor, p0: int, p1: int
) -> None:
    """The gradients of the factors of y + B A x, where that of y is g."""
    if dA is not None:
        dA[p0:p1] = between(product(g, B[p0:p1].mT, ends), x, ends)
    if dB is not None:
        dB[p0:p1] = between(g, product(x, A[p0:p1], ends), ends)
