"""LEGEND: weak clients train LoRA in the last layers alone; ranks grow towards the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from ...core import CommonweightError, Rng, Site, config, option
from ..asks import Client, Pools, Sent, Told, Train
from ..averaging import AVERAGING
from ..message import Part, Table, payload
from ..outer import layer
from ..registry import Setting, State, method


@config
class Legend:
    rank: int = option(16, "rank in the last layer", ge=1)
    least: int = option(4, "rank in the first layer; between them it grows evenly", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: twice each rank, a scale of 2", gt=0)
    depths: tuple[float, ...] = option(
        (0.25, 0.5, 1.0), "kinds of clients: the share of the layers, from the last one on, that each of them trains; "
        "unused where seconds, rates or memory is given"
    )  # fmt: skip
    seconds: tuple[float, ...] = option(
        (), "what a client can: seconds of a round for each layer that it trains. A number for each client, or fewer, "
        "which then take turns"
    )  # fmt: skip
    rates: tuple[float, ...] = option((), "the same: bytes a second of its link; empty: links take no time")
    memory: tuple[int, ...] = option((), "the same: layers whose training its memory holds; empty: all")
    deadline: float | None = option(
        None, "seconds in which a client's round shall end; none: what the median client takes for all layers", gt=0
    )

    def check(self) -> str | None:
        for name in ("seconds", "rates", "memory"):
            if bad := [v for v in getattr(self, name) if not 0 < v < math.inf]:
                return f"{name} has {bad[0]:g}; wanted numbers above 0"
        if self.deadline is not None and not (self.seconds or self.rates):
            return "deadline without seconds or rates: nothing says how long a client takes; give one of them"
        if self.least > self.rank:
            return f"least={self.least} is more than rank={self.rank}; ranks grow towards the output"
        if not self.depths or not all(0 < d <= 1 for d in self.depths):
            return f"depths={self.depths}; wanted shares above 0, at most 1"
        return None


def ranks(config: Legend, sites: Sequence[Site]) -> dict[str, Any]:
    """A rank for each site: rank in the last layer, least in the first, evenly between."""
    layers = sorted({k for s in sites if (k := layer(s.name)) is not None})
    place = {k: i / max(1, len(layers) - 1) for i, k in enumerate(layers)}
    growth = config.rank - config.least
    of = {s.name: config.least + round(growth * place.get(layer(s.name), 1.0)) for s in sites}  # type: ignore[arg-type]
    return {"ranks": tuple(of.items()), "alphas": tuple((n, config.alpha or 2.0 * r) for n, r in of.items())}


def begin(setting: Setting, start: Pools) -> State:
    """Raises: CommonweightError where more clients are described than there are."""
    for name in ("seconds", "rates", "memory"):
        if (n := len(getattr(setting.config, name))) > setting.clients:
            raise CommonweightError(
                f"legend: {name} has {n} numbers for {setting.clients} clients; give at most one for each"
            )
    return AVERAGING["begin"](setting, start)


def numbers(setting: Setting) -> tuple[int, tuple[int, ...]]:
    """(trained numbers in no layer, those of each layer, the last one first)."""
    of: dict[int | None, int] = {}
    for n, p in setting.pools.items():
        of[layer(n)] = of.get(layer(n), 0) + p.numel
    return of.pop(None, 0), tuple(of[k] for k in sorted(of, reverse=True))  # type: ignore[type-var]


def duration(config: Legend, client: int, depth: int, nbytes: int) -> float:
    """Seconds of a client's round: depth layers are trained, nbytes travel."""
    layers = config.seconds[client % len(config.seconds)] if config.seconds else 0.0
    return depth * layers + (nbytes / config.rates[client % len(config.rates)] if config.rates else 0.0)


def travel(outside: int, each: Sequence[int], depth: int) -> int:
    """Bytes of a client's round, up and down together, without codecs."""
    return 8 * (outside + sum(each[:depth]))


@cache
def limit(config: Legend, clients: int, outside: int, each: tuple[int, ...]) -> float:
    """The deadline: the one given, or what the median client (of two the faster) takes for all layers."""
    if config.deadline is not None:
        return config.deadline
    whole = travel(outside, each, len(each))
    return sorted(duration(config, c, len(each), whole) for c in range(clients))[(clients - 1) // 2]


def deepest(setting: Setting, client: int) -> int:
    """The most layers, from the last one on, that a client's memory holds and with which it meets the deadline: greedy,
    one after the other until the next does not fit. At least 1."""
    config, (outside, each) = setting.config, numbers(setting)
    most = min(len(each), config.memory[client % len(config.memory)]) if config.memory else len(each)
    end, depth = limit(config, setting.clients, outside, each), min(1, len(each))
    while depth < most and duration(config, client, depth + 1, travel(outside, each, depth + 1)) <= end:
        depth += 1
    return depth


def described(config: Legend) -> bool:
    """Whether it is said what clients can."""
    return bool(config.seconds or config.rates or config.memory)


def depth(setting: Setting, client: int) -> int:
    """How many layers a client trains: what it can, or a kind that is drawn once for it."""
    if described(setting.config):
        return deepest(setting, client)
    kinds = setting.config.depths
    share = kinds[int(Rng(setting.seed, f"device/{client}").integers((1,), len(kinds)))]
    return math.ceil(share * len(numbers(setting)[1]))


def seconds(setting: Setting, client: int) -> float | None:
    """How long a client's round takes; None where nothing is said of its speed."""
    if not (setting.config.seconds or setting.config.rates):
        return None
    mine = depth(setting, client)
    return duration(setting.config, client, mine, travel(*numbers(setting), mine))


def held(setting: Setting, client: int) -> list[str]:
    """The pools that a client trains: those outside of layers, and of its last layers."""
    layers = sorted({k for n in setting.travels if (k := layer(n)) is not None})
    last = {*layers[len(layers) - depth(setting, client) :]}
    return [n for n in setting.travels if layer(n) is None or layer(n) in last]


def table(setting: Setting, round: int, client: int) -> Table:
    return {n: Part(setting.pools[n].shape) for n in held(setting, client)}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return {n: state.tensors[n] for n in held(setting, client)}


def client(setting: Setting, told: Told) -> Client:
    """The other layers are the base's: their B is zero, and stays."""
    mine = held(setting, told.client)
    absent = {n: torch.zeros(()) for n in setting.travels if n not in mine}
    done = yield Train({**told.start, **told.tensors}, mask=absent)
    return Sent({n: done.pools[n] for n in mine}, {}, done.loss)


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    n = payload(table(setting, round, client))
    return n, n


@method(
    "legend",
    Legend,
    paper="Adaptive Parameter-Efficient Federated Fine-Tuning on Heterogeneous Devices (LEGEND), arXiv 2412.20004",
    id=196,
    by_sites=ranks,
    **{
        **AVERAGING, "begin": begin, "seconds": seconds,
        "down": table, "up": table, "tell": tell, "client": client, "nbytes": nbytes, "broadcast": False,
        "formula": "4 (numbers of the layers that the client has) up and down",
        "noise": "a layer's mean is over the clients that have it, and noise is for a mean over all",
    },
)  # fmt: skip
def adapter(config: Legend) -> tuple[str, dict[str, Any]]:
    """LoRA whose rank is the same for a layer on all clients, so that A and B average apart; each layer's mean is over
    the clients that have it.

    Source: arXiv 2412.20004. Differs: of the paper its beginning could be read. Ours are the even growth of ranks, and
    the greedy rule: as many layers as end by the deadline, which is the median client's time. The paper's server
    estimates times from round to round; here they are given. Where nothing is said of clients, who has how many layers
    is drawn from `depths`.
    """
    return "lora", {"rank": config.rank}
