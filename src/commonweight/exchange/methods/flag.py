"""Flag Aggregator: the mean of the changes within the subspace that most clients span."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import Reply, Setting, State, method


@config
class Flag:
    subspace: int | None = option(None, "dimensions r of the subspace; none: half of the answers, rounded up", ge=1)
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def aggregate(changes: Sequence[Tensor], rank: int | None = None) -> Tensor:
    """(n vectors (p,)) -> (p,) float64: m / n * sum of Y Y^T x_i, x_i = change_i / ||change_i||, m the median norm.

    Y: the first r left singular vectors of X diag(w), where w_i = (1 - ||Y0^T x_i||^2)^(-1/4) for those of X: one step
    of reweighted least squares. Cost: the n x n products of the changes; Y itself is not made.
    """
    norms = torch.stack([c.double().norm() for c in changes])
    used = norms > 0
    if not used.any():
        return torch.zeros_like(changes[0], dtype=torch.float64)
    x = torch.stack([c.double() / n for c, n in zip(changes, norms) if n > 0])  # (n, p)
    gram = x @ x.T
    r = min(rank or -(-len(x) // 2), len(x))
    share = inside(gram, torch.ones(len(x), dtype=torch.float64), r)
    weight = (1 - share.square().sum(0)).clamp(min=1e-8) ** -0.25
    v, size = vectors(gram, weight, r)
    # Y = X^T diag(w) V / size, so Y Y^T sum of x_i is a sum of x_i again
    return (weight * (v @ (inside(gram, weight, r).sum(1) / size))) @ x * norms.quantile(0.5) / len(changes)


def vectors(gram: Tensor, weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Of X diag(w): the first right singular vectors (n, r) and singular values (r,), those of nothing left out."""
    squares, v = torch.linalg.eigh(weight[:, None] * gram * weight)
    keep = squares.flip(0)[:r] > 1e-12 * squares[-1]
    return v.flip(1)[:, :r][:, keep], squares.flip(0)[:r][keep].sqrt()


def inside(gram: Tensor, weight: Tensor, r: int) -> Tensor:
    """Y^T x_i of all i, (r, n)."""
    v, size = vectors(gram, weight, r)
    return (v / size).T @ (weight[:, None] * gram)


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """theta <- theta + the aggregate of the changes of all pools together. Rows do not weigh."""
    names = list(state.tensors)
    changes = [torch.cat([(r.tensors[n] - state.tensors[n]).reshape(-1) for n in names]) for r in replies]
    parts = aggregate(changes, setting.config.subspace).split([state.tensors[n].numel() for n in names])
    new = {
        n: state.tensors[n] + p.view(state.tensors[n].shape).to(state.tensors[n].dtype) for n, p in zip(names, parts)
    }
    return state._replace(tensors=new)


@method(
    "flag",
    Flag,
    paper="Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses "
    "using Convex Optimization, arXiv 2302.05865",
    id=276,
    **{**AVERAGING, "gather": gather, "noise": "its directions depend on every client, and noise is for a mean"},
)
def adapter(config: Flag) -> tuple[str, dict[str, Any]]:
    """Differs: the published code gives sum of Y Y^T x_i / r of unit vectors, whose norm says nothing of a change's and
    falls with r; here it is the mean, times the median norm.

    Source: arXiv 2302.05865, algorithm 1, and its code.
    """
    return config.adapter, dict(config.options)
