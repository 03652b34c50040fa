"""MeZO over many clients: all measure the slope along the same seeded directions; the mean slope is the message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...core import config, option
from .. import logs
from ..asks import Client, Pools, Sent, Told
from ..averaging import mean, weights
from ..message import Part, Table, payload
from ..registry import Reply, Setting, State, method
from ..walk import NOISE, resting, seed_of, slope, step_, uncoded


@config
class Mezo:
    directions: int = option(1, "directions of a step, and so scalars of a client; a round is one step", ge=1)
    rate: float = option(1e-3, "learning rate; the recipe's own lr is not used", gt=0)
    eps: float = option(1e-3, "how far to both sides the loss is measured", gt=0)
    adapter: str = option("lora", "the method whose pools walk: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def seeds(setting: Setting, step: int) -> list[int]:
    return [seed_of(setting.seed, "mezo", step, i) for i in range(setting.config.directions)]


def moves(setting: Setting, step: int, slopes: Sequence[float]) -> list[tuple[int, float]]:
    """theta <- theta - rate / directions * sum of g z."""
    c = setting.config
    return [(s, -c.rate / c.directions * g) for s, g in zip(seeds(setting, step), slopes)]


def begin(setting: Setting, start: Pools) -> State:
    return logs.begin(setting, start, torch.float32)


def down(setting: Setting, round: int, client: int) -> Table:
    return logs.down(round, setting.config.directions, "float32")


def up(setting: Setting, round: int, client: int) -> Table:
    return {"slopes": Part((setting.config.directions,))}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return logs.tell(state, client)


def client(setting: Setting, told: Told) -> Client:
    """Plays the steps that it has not made, then measures along the directions of the next one, a batch each."""
    names, n = setting.travels, setting.config.directions
    pools, steps = logs.stands(setting, told)
    for slopes in told.tensors["log"].view(-1, n)[logs.missing(told, steps) :].tolist():
        step_(pools, names, moves(setting, steps, slopes))
        steps += 1
    every, found = {**pools, **resting(setting, told.start)}, []
    for i, seed in enumerate(seeds(setting, steps)):
        found.append((yield from slope(every, names, seed, setting.config.eps, i)))
    slopes = torch.tensor([g for g, _ in found], dtype=torch.float32)
    return Sent({"slopes": slopes}, logs.kept(pools, steps), logs.mean(l for _, l in found))


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    entry = mean([r.tensors["slopes"] for r in replies], weights(replies, setting.weigh))
    pools = {n: state.tensors[n].clone() for n in setting.travels}
    step_(pools, setting.travels, moves(setting, len(state.tensors["ends"]) - 1, entry.tolist()))
    return logs.grown(state, pools, entry, replies, {"slope": float(entry.abs().mean())})


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return payload(up(setting, round, client)), payload(down(setting, round, client))


@method(
    "mezo",
    Mezo,
    paper="Fine-Tuning Language Models with Just Forward Passes, arXiv 2305.17333",
    begin=begin, down=down, tell=tell, up=up, client=client, gather=gather, pools=logs.pools, nbytes=nbytes,
    formula="4 directions up; 4 and 4 directions a step that the client has not made down",
    keeps="the pools and the log: 4 directions a step", each="its pools", broadcast=False, noise=NOISE,
    uncoded=uncoded,
)  # fmt: skip
def adapter(config: Mezo) -> tuple[str, dict[str, Any]]:
    """g = (l(theta + eps z) - l(theta - eps z)) / (2 eps), z ~ N(0, I) from a seed; theta <- theta - rate g z.

    Source: arXiv 2305.17333, algorithm 1. Clients share the directions of a step, so that the mean of their slopes is
    the slope of their mean loss. Differs: random numbers are counter-based, not torch's; several directions a step. The
    rate is ours, for a tenant's pools; the source's are for whole models.
    """
    return config.adapter, dict(config.options)
