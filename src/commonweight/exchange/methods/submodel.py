"""Sub-models: each client has a part of the numbers; each number's mean is over the clients that have it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import Rng, config, option
from ..asks import Client, Pools, Sent, Told, Train
from ..averaging import AVERAGING, weights
from ..message import Part, Table
from ..registry import Reply, Setting, State, method


@config
class SubModel:
    share: float = option(0.5, "share of the numbers that a client has in a round", gt=0, le=1)
    coverage: int = option(1, "clients that must have a number for it to change", ge=1)
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def size(setting: Setting) -> int:
    """Numbers of a client in a round."""
    return max(1, math.floor(setting.config.share * setting.count + 0.5))


def places(setting: Setting, round: int, client: int) -> Tensor:
    """Which numbers, counted through all pools, (k,) in order. Clients' windows lie end to end on numbers that are
    drawn anew each round, so that n clients in a row cover each number at least floor(n k / p) times."""
    k, p = size(setting), setting.count
    order = Rng(setting.seed, f"numbers/{round}").permutation(p)
    window = (torch.arange(k) + client * k % p) % p
    return order[window].sort().values


def flat(pools: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([pools[n].reshape(-1) for n in names])


def apart(numbers: Tensor, setting: Setting) -> dict[str, Tensor]:
    """The numbers of all pools, (p,), by pool."""
    parts = numbers.split([p.numel for p in setting.pools.values()])
    return {n: v.view(p.shape) for v, (n, p) in zip(parts, setting.pools.items())}


def table(setting: Setting, round: int, client: int) -> Table:
    return {"numbers": Part((size(setting),))}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return {"numbers": flat(state.tensors, setting.travels)[places(setting, round, client)]}


def client(setting: Setting, told: Told) -> Client:
    """The numbers that it does not have are zero, and stay."""
    at = places(setting, told.round, told.client)
    have = torch.zeros(setting.count)
    mask = apart(have.index_fill(0, at, 1.0), setting)
    pools = apart(have.index_copy(0, at, told.tensors["numbers"]), setting)
    mine = {n: told.keep.get(n, told.start[n]) for n in setting.private}
    done = yield Train({**pools, **mine}, mask=mask)
    return Sent(
        {"numbers": flat(done.pools, setting.travels)[at]}, {n: done.pools[n] for n in setting.private}, done.loss
    )


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """theta_j <- sum over the clients that have j of w_n theta_nj / sum of their w_n; j stays where fewer than
    `coverage` have it."""
    total = torch.zeros(setting.count, dtype=torch.float64)
    weight, have = torch.zeros_like(total), torch.zeros(setting.count, dtype=torch.long)
    for r, w in zip(replies, weights(replies, setting.weigh)):
        at = places(setting, round, r.client)
        total[at] += w * r.tensors["numbers"].double()
        weight[at] += w
        have[at] += 1
    before = flat(state.tensors, setting.travels)
    enough = have >= setting.config.coverage
    new = torch.where(enough, (total / weight.clamp(min=1e-300)).to(before.dtype), before)
    seen = {"least_coverage": float(have.min()), "covered": float(enough.double().mean())}
    return State(apart(new, setting), state.facts, seen)


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return 4 * size(setting), 4 * size(setting)


@method(
    "submodel",
    SubModel,
    paper="Every Parameter Matters: Ensuring the Convergence of Federated Learning with Dynamic Heterogeneous Models "
    "Reduction, arXiv 2310.08670",
    id=191,
    **{
        **AVERAGING, "down": table, "up": table, "tell": tell, "client": client, "gather": gather, "nbytes": nbytes,
        "broadcast": False, "places": lambda *at: {"numbers": (places(*at), at[0].count)},
        "formula": "4 share p up, 4 share p down; masks are drawn on both sides",
        "noise": "a number's mean is over the clients that have it, and noise is for a mean over all",
    },
)  # fmt: skip
def adapter(config: SubModel) -> tuple[str, dict[str, Any]]:
    """theta o m_n is trained by client n, where m_n changes every round.

    Source: arXiv 2310.08670, by its abstract, and HeteroFL's mean (arXiv 2010.01264). Differs: masks are windows over
    numbers in an order drawn for the round; the trained pools of a tenant are reduced, not the base; clients weigh by
    their rows (weigh=clients: 1 / |N_j|, as in the source).
    """
    return config.adapter, dict(config.options)
