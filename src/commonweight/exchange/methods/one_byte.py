"""Just One Byte: every client measures along directions of its own; a byte for each is all that travels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import config, option
from ...core.bits import packed, unpacked
from .. import logs
from ..asks import Client, Pools, Sent, Told
from ..message import Part, Table, payload
from ..registry import Reply, Setting, State, method
from ..walk import NOISE, resting, seed_of, slope, step_, uncoded


@config
class OneByte:
    directions: int = option(1, "directions, a batch and a byte each, of a client in a step; a round is one step", ge=1)
    rate: float = option(1e-3, "learning rate; the recipe's own lr is not used", gt=0)
    eps: float = option(1e-3, "how far to both sides the loss is measured", gt=0)
    compat: Literal["", "official"] = option(
        "", "official: the published code, a sign and 255 powers of e^(1/16), which is 9 bits and travels as two "
        "bytes, and a rate divided by the root of the number of slopes"
    )  # fmt: skip
    adapter: str = option("lora", "the method whose pools walk: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def encode(slopes: Sequence[float]) -> Tensor:
    """A byte each, uint8: the sign's bit, and 7 bits k of the magnitude: e^((k - 64) / 8), or 0 for k = 0.

    Relative error: at most 6.5%, 3.1% in the median, for magnitudes from e^-7.94 to e^7.94; smaller ones become 0,
    larger ones the largest.
    """
    out = []
    for g in slopes:
        k = 0 if g == 0 else min(127, round(8 * math.log(abs(g))) + 64)
        out.append(0 if k < 1 else k + 128 * (g < 0))
    return torch.tensor(out, dtype=torch.uint8)


def decode(codes: Tensor) -> list[float]:
    """Each of 256 codes has one float32, which no library's last digit decides."""
    sizes = [0.0 if k & 127 == 0 else math.exp(((k & 127) - 64) / 8) for k in codes.tolist()]
    return torch.where(codes > 127, -1.0, 1.0).mul(torch.tensor(sizes)).tolist()


def encode_official(slopes: Sequence[float]) -> Tensor:
    """int16: sign (power + 128), power = clip(round(16 ln |g|), -127, 127); 0 for 0."""
    powers = [0 if g == 0 else max(-127, min(127, round(16 * math.log(abs(g))))) + 128 for g in slopes]
    return torch.tensor([int(math.copysign(p, g)) for p, g in zip(powers, slopes)], dtype=torch.int16)


def decode_official(codes: Tensor) -> list[float]:
    sizes = [0.0 if k == 0 else math.copysign(math.exp((abs(k) - 128) / 16), k) for k in codes.tolist()]
    return torch.tensor(sizes).tolist()


def form(setting: Setting) -> tuple[str, int, Any, Any]:
    """(dtype of a code, its bytes, encode, decode)."""
    if setting.config.compat == "official":
        return "int16", 2, encode_official, decode_official
    return "uint8", 1, encode, decode


def seeds(setting: Setting, step: int, client: int) -> list[int]:
    return [seed_of(setting.seed, "one-byte", step, client, i) for i in range(setting.config.directions)]


def whose(setting: Setting) -> int:
    """Bytes of a step's bit mask of clients."""
    return -(-setting.clients // 8)


def entry(setting: Setting, replies: Sequence[Reply]) -> Tensor:
    """A step of the log, uint8: who answered, a bit for each client; then their codes in order."""
    answered = torch.zeros(setting.clients, dtype=torch.bool)
    answered[[r.client for r in replies]] = True
    return torch.cat([packed(answered), *(r.tensors["codes"].contiguous().view(torch.uint8) for r in replies)])


def read(setting: Setting, log: Tensor) -> list[dict[int, list[float]]]:
    """The steps of a log: client -> its slopes."""
    dtype, size, _, back = form(setting)
    n, out = setting.config.directions, []
    while len(log):
        mask, log = log[: whose(setting)], log[whose(setting) :]
        who = unpacked(mask, (setting.clients,)).nonzero().flatten().tolist()
        codes, log = log[: len(who) * n * size], log[len(who) * n * size :]
        values = back(codes.clone().view(getattr(torch, dtype)))
        out.append({c: values[i * n : i * n + n] for i, c in enumerate(who)})
    return out


def moves(setting: Setting, step: int, slopes: dict[int, list[float]]) -> list[tuple[int, float]]:
    """theta <- theta - rate / n * sum of g z over all n slopes of a step; officially / sqrt(n)."""
    n = len(slopes) * setting.config.directions
    rate = setting.config.rate / (math.sqrt(n) if setting.config.compat == "official" else n)
    return [(s, -rate * g) for c, mine in slopes.items() for s, g in zip(seeds(setting, step, c), mine)]


def begin(setting: Setting, start: Pools) -> State:
    return logs.begin(setting, start, torch.uint8)


def down(setting: Setting, round: int, client: int) -> Table:
    most = whose(setting) + setting.clients * setting.config.directions * form(setting)[1]
    return logs.down(round, most, "uint8")


def up(setting: Setting, round: int, client: int) -> Table:
    return {"codes": Part((setting.config.directions,), form(setting)[0])}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return logs.tell(state, client)


def client(setting: Setting, told: Told) -> Client:
    """Plays the steps that it has not made, then measures along directions of its own."""
    names = setting.travels
    pools, steps = logs.stands(setting, told)
    for slopes in read(setting, told.tensors["log"])[logs.missing(told, steps) :]:
        step_(pools, names, moves(setting, steps, slopes))
        steps += 1
    every, found = {**pools, **resting(setting, told.start)}, []
    for i, seed in enumerate(seeds(setting, steps, told.client)):
        found.append((yield from slope(every, names, seed, setting.config.eps, i)))
    codes = form(setting)[2]([g for g, _ in found])
    return Sent({"codes": codes}, logs.kept(pools, steps), logs.mean(l for _, l in found))


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """All slopes count alike, as in the source; the server plays the step as every client will."""
    new = entry(setting, replies)
    (slopes,) = read(setting, new)
    pools = {n: state.tensors[n].clone() for n in setting.travels}
    step_(pools, setting.travels, moves(setting, len(state.tensors["ends"]) - 1, slopes))
    size = logs.mean(abs(g) for mine in slopes.values() for g in mine)
    return logs.grown(state, pools, new, replies, {"slope": size})


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return payload(up(setting, round, client)), payload(down(setting, round, client))


@method(
    "one-byte",
    OneByte,
    paper="Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using Shared "
    "Randomness, arXiv 2306.10015",
    id=25,
    begin=begin, down=down, tell=tell, up=up, client=client, gather=gather, pools=logs.pools, nbytes=nbytes,
    formula="directions up; 4, and a step that the client has not made: clients / 8 + answers directions down",
    keeps="the pools and the log", each="its pools", broadcast=False, noise=NOISE,
    uncoded=uncoded,
)  # fmt: skip
def adapter(config: OneByte) -> tuple[str, dict[str, Any]]:
    """theta <- theta - rate / n * sum of g_mi z(k, m, i) over machines m and their samples i in step k.

    Source: arXiv 2306.10015. The published code rounds 16 ln |g| to 255 powers, which with the sign takes 9 bits, and
    then sends the slope unrounded, as text. Here a byte is a byte, and everybody walks along what was sent: server and
    clients stay equal to the bit. Differs: eps is not drawn anew for each sample. The
    rate is ours, for a tenant's pools; the source's are for whole models.
    """
    return config.adapter, dict(config.options)
