"""Coordinate-wise median: of every number the middle one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import Reply, Setting, State, method


@config
class Median:
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def middle(values: Sequence[Tensor]) -> Tensor:
    """(n tensors) -> the median of each number; of an even count the mean of both in the middle."""
    x = torch.stack(list(values)).double().sort(0).values
    n = len(x)
    return ((x[(n - 1) // 2] + x[n // 2]) / 2).to(values[0].dtype)


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """Rows do not weigh: a bad client could say that it has many."""
    return state._replace(tensors={n: middle([r.tensors[n] for r in replies]) for n in state.tensors})


@method(
    "median",
    Median,
    paper="Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, arXiv 1803.01498",
    **{
        **AVERAGING, "gather": gather,
        "noise": "a median changes with one client by more than its share, and noise is for a mean",
    },
)  # fmt: skip
def adapter(config: Median) -> tuple[str, dict[str, Any]]:
    """theta_j <- median over clients of theta_nj: less than half of them cannot move it beyond the others' values.

    Source: arXiv 1803.01498, definition 1. Equal to Flower's FedMedian; a simulation needs no Flower.
    """
    return config.adapter, dict(config.options)
