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
    """Changes of one projection. A (n, r, inp), B (n, r, out): of each (expert, reader) that has rows, in order. B is
    laid down turned: so a gradient times it is three times as fast on a CPU."""

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
    """hidden (N, d), weights (N k,) and the factors of up and down, as in `Low` (None for no change) -> (N, d)."""

    @staticmethod
    def forward(
        ctx: Any, work: Work, hidden: Tensor, weights: Tensor, A: Tensor | None, B: Tensor | None, C: Tensor | None,
        D: Tensor | None,
    ) -> Tensor:  # fmt: skip
        out = hidden.new_zeros(len(hidden), work.down.shape[1])
        kept = work.up.new_empty(len(work.token), work.up.shape[1])
        first, second = (None if t is None else t.new_empty(len(work.token), t.shape[1]) for t in (A, C))
        for chunk in work.chunks:
            a, b = chunk[4:]
            at = work.token[a:b]
            kept[a:b] = y = _linear(work.up, work.up_bias, A, B, hidden.index_select(0, at), work, chunk, first)
            y = _linear(work.down, work.down_bias, C, D, work.gate(y), work, chunk, second)
            y *= weights.index_select(0, work.place[a:b])[:, None]
            out.index_add_(0, at, y.to(out.dtype))
        ctx.work = work
        ctx.save_for_backward(hidden, weights, kept, A, B, C, D, first, second)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        work: Work = ctx.work
        hidden, weights, kept, A, B, C, D, first, second = ctx.saved_tensors
        dx = torch.zeros_like(hidden) if ctx.needs_input_grad[1] else None
        dw = torch.zeros_like(weights)
        dA, dB, dC, dD = (None if t is None else torch.zeros_like(t) for t in (A, B, C, D))
        for chunk in work.chunks:
            e0, e1, p0, p1, a, b = chunk
            at, place, ends, lows = work.token[a:b], work.place[a:b], work.ends[e0:e1] - a, work.lows[p0:p1] - a
            with torch.enable_grad():
                y = kept[a:b].detach().requires_grad_()
                gated = work.gate(y)
            h, w = gated.detach(), weights.index_select(0, place)[:, None]
            go = g.index_select(0, at).to(h.dtype)
            u = product(go, work.down[e0:e1].mT, ends)  # of h, before the weighing: so its product with h is of w
            if C is not None:
                t = product(go, D[p0:p1], lows)
                u += product(t, C[p0:p1].mT, lows)
                dC[p0:p1] = between(t * w, h, lows)  # type: ignore[index]
                dD[p0:p1] = between(second[a:b] * w, go, lows)  # type: ignore[index]
            each = (u * h).sum(1)
            if work.down_bias is not None:
                each += (go * work.down_bias[work.expert[a:b]]).sum(1)
            dw.index_copy_(0, place, each.to(dw.dtype))
            u *= w
            (dy,) = torch.autograd.grad(gated, y, u.to(gated.dtype))
            t = None
            if A is not None:
                t = product(dy, B[p0:p1], lows)
                dA[p0:p1] = between(t, hidden.index_select(0, at), lows)  # type: ignore[index]
                dB[p0:p1] = between(first[a:b], dy, lows)  # type: ignore[index]
            if dx is not None:
                d = product(dy, work.up[e0:e1].mT, ends)
                if A is not None:
                    d += product(t, A[p0:p1].mT, lows)  # type: ignore[arg-type]
                dx.index_add_(0, at, d.to(dx.dtype))
        return None, dx, dw, dA, dB, dC, dD


def _linear(
    w: Tensor, bias: Tensor | None, A: Tensor | None, B: Tensor | None, x: Tensor, work: Work, chunk: tuple,
    kept: Tensor | None,
) -> Tensor:  # fmt: skip
    """The projection of one piece; what A makes of it goes into `kept`."""
    e0, e1, p0, p1, a, b = chunk
    y = product(x, w[e0:e1], work.ends[e0:e1] - a)
    if bias is not None:
        y += bias[work.expert[a:b]]
    if A is not None and B is not None and kept is not None:
        ends = work.lows[p0:p1] - a
        kept[a:b] = low = product(x, A[p0:p1], ends)
        y += product(low, B[p0:p1].mT, ends)
    return y
