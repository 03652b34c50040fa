"""LEGEND: weak clients train LoRA in the last layers alone; ranks grow towards the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...core import Rng, Site, config, option
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
        (0.25, 0.5, 1.0), "kinds of clients: the share of the layers, from the last one on, that each of them trains"
    )

    def check(self) -> str | None:
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


def share(setting: Setting, client: int) -> float:
    """How much of the layers a client trains: one of the kinds, drawn once for it."""
    kinds = setting.config.depths
    return kinds[int(Rng(setting.seed, f"device/{client}").integers((1,), len(kinds)))]


def deepest(layers: int, seconds: float, nbytes: Sequence[int], rate: float, deadline: float) -> int:
    """The most layers, from the last one on, with which a client meets a deadline: seconds for each layer, and the
    bytes of these layers at a rate in bytes a second. At least 1. nbytes: by layer, the last one first."""
    fits = [n for n in range(1, layers + 1) if n * seconds + sum(nbytes[:n]) / rate <= deadline]
    return max(fits, default=1)


def held(setting: Setting, client: int) -> list[str]:
    """The pools that a client trains: those outside of layers, and of the last ceil(share * layers) layers."""
    layers = sorted({k for n in setting.travels if (k := layer(n)) is not None})
    last = set(layers[len(layers) - math.ceil(share(setting, client) * len(layers)) :])
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
    paper="Adaptive Rank and Layer-wise Low-rank Adaptation for Federated Fine-tuning (LEGEND), arXiv 2412.20004",
    id=196,
    by_sites=ranks,
    **{
        **AVERAGING, "down": table, "up": table, "tell": tell, "client": client, "nbytes": nbytes, "broadcast": False,
        "formula": "4 (numbers of the layers that the client has) up and down",
        "noise": "a layer's mean is over the clients that have it, and noise is for a mean over all",
    },
)  # fmt: skip
def adapter(config: Legend) -> tuple[str, dict[str, Any]]:
    """LoRA whose rank is the same for a layer on all clients, so that A and B average apart; each layer's mean is over
    the clients that have it.

    Source: arXiv 2412.20004. Differs: of the paper its beginning could be read; the arithmetic of ranks is an even
    growth here, and who has how many layers is drawn from `depths` in a simulation. `deepest` is the rule by which a
    device that knows its own speed chooses.
    """
    return "lora", {"rank": config.rank}
