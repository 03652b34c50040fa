"""The mean of factors is not the mean of their products: how far it is off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import Plan
from .averaging import gather, weights
from .registry import Reply, Setting, State

MOST = 16  # replies that the error is measured on: it costs (replies * rank) ** 2 products a site


def mean_pools(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """theta <- sum_n w_n theta_n over every pool, and how far that is from the mean of the clients' updates.

    Source: arXiv 1602.05629, algorithm 1. mean(B) mean(A) is not mean(B A): the relative error is told as
    `averaging_error`.
    """
    found = gather(setting, state, round, replies)
    error = averaging_error(setting.plan, replies, weights(replies, setting.weigh), found.tensors)
    return found if error is None else found._replace(seen={"averaging_error": error})


def averaging_error(plan: Plan, replies: Sequence[Reply], shares: Sequence[float], mean: Any) -> float | None:
    """||mean of the updates - update of the means|| / ||mean of the updates||, Frobenius, over all sites whose update
    is a product of two factors that travel; None without any. Of more than `MOST` replies the first."""
    replies, shares = replies[:MOST], shares[:MOST]
    shares = [w / sum(shares) for w in shares]
    if len(replies) == MOST:  # the mean of these alone
        names = replies[0].tensors
        mean = {n: sum(w * r.tensors[n] for w, r in zip(shares, replies)) for n in names}
    error = size = 0.0
    for use in plan.uses:
        factors = getattr(use.bind, "factors", None)
        if factors is None or not all(p in mean for read in use.reads.values() for p in read.pools):
            continue

        def of(pools: Any, use: Any = use, factors: Any = factors) -> tuple[Tensor, Tensor]:
            slots = {k: r.address(*(pools[p] for p in r.pools)) for k, r in use.reads.items()}
            A, B = factors(**slots)
            return B.double(), A.double()

        each = [of(r.tensors) for r in replies]
        B = torch.cat([w * b for w, (b, _) in zip(shares, each)], 1)  # (out, n r)
        A = torch.cat([a for _, a in each])  # (n r, inp)
        b, a = of(mean)
        size += product(B, A)
        error += product(torch.cat([B, -b], 1), torch.cat([A, a]))
    return None if size == 0.0 else (max(0.0, error) / size) ** 0.5


def product(B: Tensor, A: Tensor) -> float:
    """||B A||^2, Frobenius, without the product itself. Shapes: (out, r), (r, inp)."""
    return float(((B.T @ B) * (A @ A.T)).sum())
