"""Rounding a matrix to few bits, group by group of its columns, by itself or against the inputs that it meets."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 128  # columns that share a step and a zero, row by row


def grid(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(step, zero) (n, 1) of 2^bits equal levels from the least to the largest number of each row, and of zero."""
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    empty = (low == 0) & (high == 0)
    step = torch.where(empty, torch.ones_like(low), (high - low) / (2**bits - 1))
    return step, (-low / step).round()


def snap(w: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """w (n, m) to the nearest level of its row."""
    return step * (((w / step).round() + zero).clamp(0, 2**bits - 1) - zero)


def rounded(w: Tensor, bits: int, gram: Tensor | None = None, damp: float = 0.01) -> Tensor:
    """w (n, m) on the grids of its groups, float64.

    gram (m, m), of the inputs x that the columns meet: columns are rounded one after the other, those with the largest
    inputs first, and what each loses is made up for by the columns still to come, so that |w x - rounded x| is small.
    None: every number to its nearest level. damp: added to gram's diagonal, relative to its mean. Cost of gram:
    O(m^3 + n m^2). Source: GPTQ, arXiv 2210.17323, algorithm 1, with its options act-order and groups.
    """
    w = w.double().clone()
    n, m = w.shape
    out = torch.empty_like(w)
    if gram is None:
        for i in range(0, m, GROUP):
            part = w[:, i : i + GROUP]
            out[:, i : i + GROUP] = snap(part, *grid(part, bits), bits)
        return out
    h = gram.double().clone()
    never = h.diagonal() == 0
    w[:, never] = 0
    h.diagonal()[never] = 1
    order = h.diagonal().argsort(descending=True, stable=True)
    w, h = w[:, order], h[order][:, order]
    h.diagonal().add_(damp * h.diagonal().mean())
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for i in range(0, m, GROUP):
        end = min(i + GROUP, m)
        step, zero = grid(w[:, i:end], bits)
        lost = torch.zeros(n, end - i, dtype=w.dtype)
        for j in range(i, end):
            q = snap(w[:, j : j + 1], step, zero, bits)
            out[:, order[j]] = q[:, 0]
            lost[:, j - i] = (w[:, j] - q[:, 0]) / u[j, j]
            w[:, j:end] -= torch.outer(lost[:, j - i], u[j, j:end])
        w[:, end:] -= lost @ u[i:end, end:]
    return out
