"""FRL: clients send an order of the numbers and the server counts votes; only which numbers are on is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import Rng, config, option
from ..asks import Client, Gradient, Pools, Sent, Told, Train
from ..averaging import AVERAGING
from ..message import Part, Refused, Table
from ..ranking import inverse, is_order, length, packed, unpacked
from ..registry import Reply, Setting, State, method

START = "start/"


@config
class FRL:
    rank: int = option(16, "rank r of the update", ge=1)
    share: float = option(0.5, "share k of each pool's numbers that are on: the top of the order", gt=0, le=1)
    size: float = option(0.2, "a number that is on is +size or -size, times 1 / sqrt(r)", gt=0)
    rate: float = option(0.1, "Adam's rate of the scores, of their first range 1 / sqrt(d_in)", gt=0, le=1000)
    decay: float = option(0.999, "of the rate, each round", gt=0, le=1)


def bound(setting: Setting, name: str) -> float:
    """The first scores' range to both sides."""
    shape = setting.plan.pools[name].shape
    return 1 / math.sqrt(shape[-1] if shape else 1)


def scores(setting: Setting, name: str) -> Tensor:
    """The first scores of a pool, kaiming_uniform(sqrt 5) flat, (n,): of the seed, so that nobody sends them."""
    end = bound(setting, name)
    return Rng(setting.seed, f"scores/{name}").uniform((setting.plan.pools[name].numel,), -end, end)


def constants(setting: Setting, name: str) -> Tensor:
    """What a number of a pool is where it is on, flat, (n,)."""
    size = setting.config.size / math.sqrt(setting.config.rank)
    return Rng(setting.seed, f"signs/{name}").signs((setting.plan.pools[name].numel,)) * size


def on(order: Tensor, share: float) -> Tensor:
    """float32 (n,): 1 for the top of an order, the last round(share n) of it."""
    out = torch.zeros(len(order))
    out[order[len(order) - max(1, math.floor(share * len(order) + 0.5)) :]] = 1.0
    return out


class Subnet(NamedTuple):
    """Of one pool. rest: its values where nothing is on, start - c M(first order), so that a run begins with the base.
    worth: c, flat."""

    rest: Tensor
    worth: Tensor
    share: float

    def pool(self, order: Tensor) -> Tensor:
        """start + c (M(order) - M(first order))."""
        return self.rest + (self.worth * on(order, self.share)).view(self.rest.shape)


def subnet(setting: Setting, name: str, start: Tensor) -> Subnet:
    c, share = constants(setting, name), setting.config.share
    first = on(ordered(scores(setting, name)), share)
    return Subnet(start - (c * first).view(start.shape), c, share)


def ordered(scores: Tensor) -> Tensor:
    """Places from the least score to the largest; of equals the earlier one is less."""
    return scores.argsort(stable=True)


def orders(setting: Setting, data: Tensor) -> dict[str, Tensor]:
    """Of every pool its order, (n,) int64, of what travels."""
    parts = data.split([length(p.numel) for p in setting.pools.values()])
    return {n: unpacked(b, p.numel) for (n, p), b in zip(setting.pools.items(), parts)}


def joined(setting: Setting, each: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([packed(each[n]) for n in setting.travels])


def table(setting: Setting, round: int, client: int) -> Table:
    return {"order": Part((sum(length(p.numel) for p in setting.pools.values()),), "uint8")}


def begin(setting: Setting, start: Pools) -> State:
    first = joined(setting, {n: ordered(scores(setting, n)) for n in setting.travels})
    return State({"order": first, **{START + n: start[n].clone() for n in setting.travels}})


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return {"order": state.tensors["order"]}


def client(setting: Setting, told: Told) -> Client:
    """Adam on the scores through the mask (straight-through: dl/ds = c dl/dw), cosine within the round; sends their
    order. Private pools are trained behind it, beside the pools of this order."""
    c, names = setting.config, setting.travels
    mine = {n: told.keep.get(n, told.start[n]) for n in setting.private}
    s = {n: placed(scores(setting, n), o) for n, o in orders(setting, told.tensors["order"]).items()}
    nets = {n: subnet(setting, n, told.start[n]) for n in names}
    adam = torch.optim.Adam([{"params": [v], "range": bound(setting, n)} for n, v in s.items()])
    steps, step, losses = 1, 0, 0.0
    while step < steps:
        pools = {n: nets[n].pool(ordered(s[n])) for n in names}
        found = yield Gradient({**pools, **mine}, step)
        steps, losses = found.steps, losses + found.loss
        for n, group in zip(names, adam.param_groups):
            group["lr"] = c.rate * group["range"] * c.decay**told.round * (1 + math.cos(math.pi * step / steps)) / 2
            s[n].grad = found.gradients[n].reshape(-1) * nets[n].worth
        adam.step()
        step += 1
    if mine:
        pools = {n: nets[n].pool(ordered(s[n])) for n in names}
        done = yield Train({**pools, **mine}, mask={n: torch.zeros(()) for n in names})
        mine = {n: done.pools[n] for n in mine}
    return Sent({"order": joined(setting, {n: ordered(v) for n, v in s.items()})}, mine, losses / steps)


def placed(scores: Tensor, order: Tensor) -> Tensor:
    """The sorted scores, at the places of an order: their values never change, only whose they are."""
    return torch.empty_like(scores).index_copy_(0, order, scores.sort().values)


def vote(each: Sequence[Tensor]) -> Tensor:
    """The order of the sums of positions, (n,); of equals the earlier place is less. One client, one vote."""
    total = torch.zeros(len(each[0]), dtype=torch.long)
    for order in each:
        total += inverse(order)
    return total.argsort(stable=True)


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    each = [orders(setting, r.tensors["order"]) for r in replies]
    new = joined(setting, {n: vote([one[n] for one in each]) for n in setting.travels})
    return State({**state.tensors, "order": new}, state.facts)


def check(setting: Setting, round: int, client: int, tensors: Pools) -> None:
    """Whether an answer has an order of all numbers of every pool. Raises: Refused."""
    if no := next((n for n, o in orders(setting, tensors["order"]).items() if not is_order(o)), None):
        raise Refused("wrong shape", f"what it sends of {no} is no order of its numbers")


def pools(setting: Setting, state: State) -> dict[str, Tensor]:
    found = orders(setting, state.tensors["order"])
    return {n: subnet(setting, n, state.tensors[START + n]).pool(o) for n, o in found.items()}


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    n = sum(length(p.numel) for p in setting.pools.values())
    return n, n


@method(
    "frl",
    FRL,
    paper="Every Vote Counts: Ranking-Based Training of Federated Learning to Resist Poisoning Attacks, USENIX "
    "Security 2023, arXiv 2110.04350",
    id=40,
    **{
        **AVERAGING, "begin": begin, "down": table, "up": table, "tell": tell, "client": client, "gather": gather,
        "pools": pools, "nbytes": nbytes, "check": check,
        "uncoded": lambda *_: "clients send rankings, whose places are whole numbers in as few bits as they need",
        "formula": "sum over pools of n ceil(log2 n) / 8, up and down",
        "keeps": "an order of the numbers; the first pools, which the seed gives",
        "noise": "clients send rankings, and noise is for means of numbers; a vote is bounded by itself",
    },
)  # fmt: skip
def adapter(config: FRL) -> tuple[str, dict[str, Any]]:
    """B = c o (M(s) - M(s_0)): c are signed constants that nobody trains, M is 1 for the top share of the scores s.
    Vote: order of the sums of positions over the clients; scores: the first ones, sorted, put in that order.

    Source: arXiv 2110.04350, algorithm 1, and github.com/SPIN-UMass/FRL @4cf25509. Differs: a tenant's B and head in
    place of a whole network, A random and frozen as in FFA-LoRA; M(s_0) is taken off, so that a run begins with the
    base; Adam in place of SGD, as gradients of a B and of a head differ by orders of magnitude; the mask is the top of
    the ranking, as the paper says, where the code's is that of |s|, which its vote is not.
    """
    return "lori", {"rank": config.rank, "sparsity": 0.0}  # LoRI-D: A frozen, B dense
