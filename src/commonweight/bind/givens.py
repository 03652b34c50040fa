"""Rotations of pairs of coordinates, as a tournament: neighbours first, then the winners of each pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..core import Base, serial


@lru_cache(maxsize=64)
def pairs(width: int) -> tuple[tuple[int, int], ...]:
    """(stride, pairs) of each stage; they are width - 1 pairs together. Pair k of a stage is (2 s k, 2 s k + s)."""
    out, stride, live = [], 1, width
    while live > 1:
        out.append((stride, live // 2))
        live, stride = (live + 1) // 2, 2 * stride
    return tuple(out)


@serial
@dataclass(frozen=True)
class Givens:
    """x' = c * (x P_m ... P_2 P_1): w' = (w * c) P_1^T P_2^T ... P_m^T. The bias stays.

    Stage P_s turns pair (a, b) into (a g00 + b g10, a g01 + b g11). Shapes: G (d_in - 1, 2, 2), stage by stage; or with
    `angles` t (d_in - 1,): G = [[cos, sin], [-sin, cos]] of pi tanh(t), transposed. c (d_in,), which may be absent.
    Linear in: c; with `angles` off, in each pair's numbers alone. Cost of `input`: T d_in and a copy of x for each of
    log2(d_in) stages.
    """

    angles: bool = True
    precise = True

    def turns(self, t: Tensor) -> Tensor:
        """(..., d - 1, 2, 2)."""
        if not self.angles:
            return t
        a = torch.pi * torch.tanh(t)
        cos, sin = torch.cos(a), torch.sin(a)
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)

    def stage(self, x: Tensor, G: Tensor, stride: int, n: int) -> Tensor:
        """x (..., d), G (n, 2, 2): its columns for pairs (2 s k, 2 s k + s)."""
        first = torch.arange(0, 2 * stride * n, 2 * stride, device=x.device)
        a, b = x[..., first], x[..., first + stride]
        out = x.index_copy(-1, first, a * G[:, 0, 0] + b * G[:, 1, 0])
        return out.index_copy(-1, first + stride, a * G[:, 0, 1] + b * G[:, 1, 1])

    def parts(self, t: Tensor, width: int) -> list[tuple[Tensor, int, int]]:
        found, at = [], 0
        G = self.turns(t)
        for stride, n in pairs(width):
            found.append((G[at : at + n], stride, n))
            at += n
        return found

    def weight(self, w: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        w = w if c is None else w * c
        for G, stride, n in self.parts(t, w.shape[1]):
            w = self.stage(w, G.mT, stride, n)
        return w

    def input(self, x: Tensor, base: Base, t: Tensor, c: Tensor | None = None) -> Tensor:
        was = x.dtype
        x = x.to(t.dtype)
        for G, stride, n in reversed(self.parts(t, x.shape[-1])):
            x = self.stage(x, G, stride, n)
        return (x if c is None else x * c).to(was)
