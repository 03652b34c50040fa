"""Coordinate-wise trimmed mean: the largest and the smallest values of every number do not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import Reply, Setting, State, method


@config
class TrimmedMean:
    trim: float = option(0.2, "share of the clients that is left out on each side", ge=0, le=0.49)
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def trimmed(values: Sequence[Tensor], share: float) -> Tensor:
    """(n tensors) -> the mean without the floor(share * n) largest and smallest of each number."""
    x = torch.stack(list(values)).double().sort(0).values
    k = int(share * len(x) + 1e-9)
    return x[k : len(x) - k].mean(0).to(values[0].dtype)


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """Rows do not weigh: a bad client could say that it has many."""
    trim = setting.config.trim
    return state._replace(tensors={n: trimmed([r.tensors[n] for r in replies], trim) for n in state.tensors})


@method(
    "trimmed-mean",
    TrimmedMean,
    paper="Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, arXiv 1803.01498",
    **{**AVERAGING, "gather": gather, "noise": "what is trimmed depends on every client, and noise is for a mean"},
)
def adapter(config: TrimmedMean) -> tuple[str, dict[str, Any]]:
    """theta_j <- mean over clients of theta_nj without the trim * n largest and smallest.

    Source: arXiv 1803.01498, definition 2. Equal to Flower's FedTrimmedAvg.
    """
    return config.adapter, dict(config.options)
