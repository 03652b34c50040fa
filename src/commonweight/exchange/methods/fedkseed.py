"""FedKSeed: clients walk along K seeded directions; the model is K sums of slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import Rng, config, option
from ..asks import Client, Pools, Sent, Told
from ..averaging import weights
from ..logs import mean
from ..message import Part, Table
from ..registry import Reply, Setting, State, method
from ..walk import NOISE, START, copied, first, resting, seed_of, slope, step_, uncoded


@config
class FedKSeed:
    seeds: int = option(4096, "directions K that there are, the same in all rounds", ge=1, le=32767)
    steps: int = option(200, "steps of a client in a round, a direction and a batch each", ge=1)
    rate: float = option(1e-3, "learning rate, constant; the recipe's own lr is not used", gt=0)
    eps: float = option(5e-4, "how far to both sides the loss is measured", gt=0)
    adapter: str = option("lora", "the method whose pools walk: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def candidate(setting: Setting, j: int) -> int:
    """The seed of direction j."""
    return seed_of(setting.seed, "fedkseed", j)


def walked(setting: Setting, state: State, round: int, client: int) -> Tensor:
    """Which directions a client walks along in a round, (steps,) int64; both sides draw them, nobody sends them."""
    c = setting.config
    return Rng(setting.seed, f"fedkseed/{round}/{client}").integers((c.steps,), c.seeds)


def rebuild(setting: Setting, start: Pools, sums: Tensor) -> dict[str, Tensor]:
    """w0 - rate * sum_j sums_j z_j, whoever walked and in whatever order. Cost: K axpys at most."""
    pools = copied(start, setting.travels)
    rate = setting.config.rate
    step_(pools, setting.travels, [(candidate(setting, j), -rate * s) for j, s in enumerate(sums.tolist()) if s])
    return pools


def begin(setting: Setting, start: Pools) -> State:
    return State({"sums": torch.zeros(setting.config.seeds), **first(setting, start)})


def down(setting: Setting, round: int, client: int) -> Table:
    return {"sums": Part((setting.config.seeds,))}


def up(setting: Setting, round: int, client: int) -> Table:
    return {"slopes": Part((setting.config.steps,))}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return {"sums": state.tensors["sums"]}


def client(setting: Setting, told: Told) -> Client:
    """Rebuilds the model, walks `steps` steps, and sends the slopes."""
    along = told.tensors.get("along")
    if along is None:
        along = walked(setting, State({}), told.round, told.client)
    pools = rebuild(setting, told.start, told.tensors["sums"])
    every, rest, found = pools | resting(setting, told.start), setting.config, []
    for t, j in enumerate(along.tolist()):
        seed = candidate(setting, j)
        found.append((yield from slope(every, setting.travels, seed, rest.eps, t)))
        step_(every, setting.travels, [(seed, -rest.rate * found[-1][0])])
    slopes = torch.tensor([g for g, _ in found], dtype=torch.float32)
    return Sent({"slopes": slopes}, {}, mean(l for _, l in found))


def gathering(
    which: Callable[[Setting, State, int, int], Tensor],
) -> Callable[[Setting, State, int, Sequence[Reply]], State]:
    """sums_j <- sums_j + sum over clients of their share * the slopes along j. which: as `walked`."""

    def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
        sums = state.tensors["sums"].double()
        for r, w in zip(replies, weights(replies, setting.weigh)):
            sums.index_add_(0, which(setting, state, round, r.client), w * r.tensors["slopes"].double())
        seen = {"slope": mean(float(r.tensors["slopes"].abs().mean()) for r in replies)}
        return State({**state.tensors, "sums": sums.float()}, state.facts, seen)

    return gather


def pools(setting: Setting, state: State) -> Pools:
    return rebuild(setting, {n: state.tensors[f"{START}{n}"] for n in setting.travels}, state.tensors["sums"])


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return 4 * setting.config.steps, 4 * setting.config.seeds


WALKING: dict[str, Any] = dict(
    begin=begin, down=down, tell=tell, up=up, client=client, gather=gathering(walked), pools=pools, nbytes=nbytes,
    formula="4 steps up, 4 K down", keeps="K sums; the first pools, which the seed gives", noise=NOISE,
    uncoded=uncoded,
)  # fmt: skip


@method(
    "fedkseed",
    FedKSeed,
    paper="Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 "
    "Kilobytes, arXiv 2312.06353",
    id=198,
    **WALKING,
)
def adapter(config: FedKSeed) -> tuple[str, dict[str, Any]]:
    """w = w0 - rate * sum over K directions of (sum of slopes) z_j. A client keeps nothing between rounds.

    Source: arXiv 2312.06353, algorithm 1. Differs: which directions a client walks along is drawn on both sides by the
    run's seed, so that slopes travel alone: 4 steps up in place of 8. The
    rate is ours, for a tenant's pools; the source's are for whole models.
    """
    return config.adapter, dict(config.options)
