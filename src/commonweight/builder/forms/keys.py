"""A module that reads a table of values by product keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def nearest(q: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of q1 . key1_i + q2 . key2_j and their numbers i n + j, exactly, largest first.

    q (heads, T, c), keys (2, heads, n, c / 2) -> two of (heads, T, k). A pair whose keys are the i-th and j-th best of
    their halves has i j pairs at least as good, so only those with i j <= k are looked at: about k ln k.
    """
    n = keys.shape[2]
    (s1, i1), (s2, i2) = ((half @ keys[x].mT).topk(min(k, n), -1) for x, half in enumerate(q.chunk(2, -1)))
    pairs = [(a, b) for a in range(s1.shape[-1]) for b in range(min(s1.shape[-1], k // (a + 1)))]
    a, b = torch.tensor(pairs, device=q.device).T
    scores, at = (s1[..., a] + s2[..., b]).topk(k, -1)
    return scores, i1.gather(-1, a[at]) * n + i2.gather(-1, b[at])


class Keyed:
    """y = the values that a token finds by product keys, weighed by the softmax of their scores; beside what the module
    does, or in its place."""

    needs = (nearest,)

    def grow(self: Any, heads: int, k: int, beside: bool) -> None:
        self.heads, self.k, self.added = heads, k, beside
        if not beside:
            for name in list(self._modules):
                delattr(self, name)

    def forward(self: Any, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        q = F.linear(flat, self.query, self.query_bias).view(len(flat), self.heads, -1).transpose(0, 1)
        scores, at = nearest(q, self.keys, self.k)
        weights = scores.float().softmax(-1).to(x.dtype)
        at, weights = (t.transpose(0, 1).flatten(1) for t in (at, weights))
        y = F.embedding_bag(at, self.values, per_sample_weights=weights, mode="sum").view_as(x)
        return super().forward(x) + y if self.added else y  # type: ignore[misc]
