"""What every method that averages does: the server's pools go down, are trained, come up, and their mean stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .asks import Client, Pools, Sent, Told, Train
from .message import Part, Table
from .registry import Reply, Setting, State


def begin(setting: Setting, start: Pools) -> State:
    return State({n: start[n].clone() for n in setting.travels})


def table(setting: Setting, round: int, client: int) -> Table:
    """Every pool that travels, whole."""
    return {n: Part(p.shape, p.dtype) for n, p in setting.pools.items()}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return state.tensors


def client(setting: Setting, told: Told) -> Client:
    """Trains what came down beside what it kept; sends the pools that travel, keeps the others."""
    mine = {n: told.keep.get(n, told.start[n]) for n in setting.private}
    done = yield Train({**told.tensors, **mine})
    return Sent({n: done.pools[n] for n in setting.travels}, {n: done.pools[n] for n in setting.private}, done.loss)


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    return state._replace(tensors=means(setting, state.tensors, replies))


def pools(setting: Setting, state: State) -> Pools:
    return state.tensors


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return 4 * setting.count, 4 * setting.count


def weights(replies: Sequence[Reply], weigh: str) -> list[float]:
    """Shares that sum to 1: by rows, or the same for all."""
    each = [float(r.rows) if weigh == "rows" else 1.0 for r in replies]
    return [w / sum(each) for w in each]


def mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean, summed in float64 in the order given."""
    total = torch.zeros(values[0].shape, dtype=torch.float64)
    for v, w in zip(values, shares):
        total.add_(v.double(), alpha=w)
    return total.to(values[0].dtype)


def means(setting: Setting, before: Mapping[str, Tensor], replies: Sequence[Reply]) -> dict[str, Tensor]:
    """Of every tensor the mean over the replies that have it; without any, it stays. Reads each reply once."""
    total = {n: torch.zeros(was.shape, dtype=torch.float64) for n, was in before.items()}
    mass = dict.fromkeys(before, 0.0)
    for r in replies:
        w = float(r.rows) if setting.weigh == "rows" else 1.0
        for n in before.keys() & r.tensors.keys():
            total[n].add_(r.tensors[n].double(), alpha=w)
            mass[n] += w
    return {n: (total[n] / mass[n]).to(was.dtype) if mass[n] else was for n, was in before.items()}


AVERAGING: dict[str, Any] = dict(
    begin=begin, down=table, tell=tell, up=table, client=client, gather=gather, pools=pools, nbytes=nbytes,
    formula="4 p up, 4 p down", keeps="the pools",
)  # fmt: skip
