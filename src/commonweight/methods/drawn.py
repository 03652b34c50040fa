"""Layers drawn by chance, and what a few such sets say of the layers in them: for schedules that search among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from ..core import Rng


def drawn(seed: int, name: str, weights: Tensor, many: int) -> list[int]:
    """So many places without replacement, by their weights (n,): the largest of log u / w (Efraimidis)."""
    u = Rng(seed, name).uniform((len(weights),)).double().clamp(min=1e-12)
    return (u.log() / weights.cpu()).argsort(descending=True, stable=True)[:many].tolist()


def sets(seed: int, name: str, weights: Tensor, many: int, count: int) -> list[list[int]]:
    """`count` of them, no two alike; fewer where there are no more."""
    found: dict[frozenset[int], list[int]] = {}
    at, most = 0, min(count, math.comb(len(weights), many))
    while len(found) < most and at < 1000:  # sets of next to no chance are given up
        one = drawn(seed, f"{name}/{at}", weights, many)
        found.setdefault(frozenset(one), one)
        at += 1
    return [*found.values()]


def credited(
    scores: Tensor, p: Tensor, tried: Sequence[Sequence[int]], loss: Callable[[Sequence[int]], float], pace: float
) -> Tensor:
    """scores_i + pace (R_k - mean R) p_i (1 - p_i) for i in set k, R_k = exp(-loss of set k). Shapes: scores, p (n,).

    Source: the one step of the published codes of DAS (github.com/DoubtedSteam/DAS @1d6a0d6) and IST.
    """
    rewards = [math.exp(-loss(s)) for s in tried]
    out, mean = scores.clone(), sum(rewards) / len(rewards)
    for mine, reward in zip(tried, rewards):
        out[mine] += pace * (reward - mean) * (p * (1 - p))[mine]
    return out
