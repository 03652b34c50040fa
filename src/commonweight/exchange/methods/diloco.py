"""DiLoCo and Streaming DiLoCo: many local steps, then one outer step on the mean change; fragments in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import config, option
from ..asks import Client, Pools, Sent, Told, Train
from ..averaging import mean, weights
from ..message import Part, Table
from ..outer import coded, decoded, fragments, nbytes, nesterov
from ..registry import Reply, Setting, State, method


@config
class DiLoCo:
    steps: int | None = option(
        None, "H: a client's steps between two outer steps of a fragment; none: the run's own steps, every round", ge=1
    )
    outer_lr: float = option(0.7, "learning rate of the outer step", gt=0)
    outer_momentum: float = option(0.9, "Nesterov momentum of the outer step; 0: plain SGD", ge=0, le=0.999)
    fragments: int = option(1, "parts of the layers that are exchanged in turn, one a round", ge=1)
    delay: int = option(0, "tau: steps that a client goes on with while a fragment is on its way", ge=0)
    alpha: float = option(0.0, "share of its own numbers that a client keeps when a fragment arrives", ge=0, le=0.999)
    bits: Literal[32, 8, 4] = option(32, "of an outer gradient's numbers: float32, float8 E4M3, or E3M0")
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")

    def check(self) -> str | None:
        if self.steps is None:
            return "delay needs steps, the number of which it is a part" if self.delay else None
        if self.steps % self.fragments:
            return f"steps={self.steps} is no multiple of fragments={self.fragments}: a round has steps / fragments"
        if self.delay >= self.steps // self.fragments:
            return f"delay={self.delay}; a round has {self.steps // self.fragments} steps, and it must be fewer"
        return None


def going(setting: Setting, round: int) -> tuple[str, ...]:
    """The pools whose outer gradients go up in a round."""
    every = fragments(setting.travels, setting.config.fragments)
    return every[round % len(every)]


def begin(setting: Setting, start: Pools) -> State:
    fragments(setting.travels, setting.config.fragments)
    return State({n: start[n].clone() for n in setting.travels})


def down(setting: Setting, round: int, client: int) -> Table:
    """The fragment of the round before. In the first round nothing: both sides have the first values."""
    return {n: Part(setting.pools[n].shape, setting.pools[n].dtype) for n in going(setting, round - 1)} if round else {}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return {n: state.tensors[n] for n in down(setting, round, client)}


def up(setting: Setting, round: int, client: int) -> Table:
    names, bits = going(setting, round), setting.config.bits
    if bits == 32:
        return {n: Part(setting.pools[n].shape, setting.pools[n].dtype) for n in names}
    size = sum(nbytes(setting.pools[n].numel, bits) for n in names)
    return {"codes": Part((size,), "uint8"), "scales": Part((len(names),))}


def client(setting: Setting, told: Told) -> Client:
    """Goes on from its own numbers; keeps them, its optimiser, and the server's last numbers of each fragment."""
    c, keep = setting.config, told.keep
    mine = {n: keep.get(n, told.start[n]) for n in (*setting.travels, *setting.private)}
    anchor = {n: keep.get(f"anchor/{n}", told.start[n]) for n in setting.travels}
    moments = {k.partition("/")[2]: v for k, v in keep.items() if k.startswith("moment/")}
    steps = None if c.steps is None else c.steps // c.fragments
    losses, first = [], 0
    if told.tensors and c.delay:
        done = yield Train(mine, c.delay, moments)
        mine, moments, first = dict(done.pools), done.moments, c.delay
        losses.append((done.loss, done.steps))
    for n, v in told.tensors.items():
        mine[n] = torch.lerp(v, mine[n], c.alpha)
        anchor[n] = v
    done = yield Train(mine, None if steps is None else steps - first, moments, first=first)
    losses.append((done.loss, done.steps))
    change = {n: anchor[n] - done.pools[n] for n in going(setting, told.round)}
    kept = {**done.pools, **{f"anchor/{n}": v for n, v in anchor.items()}}
    kept |= {f"moment/{k}": v for k, v in done.moments.items()}
    loss = sum(x * k for x, k in losses) / sum(k for _, k in losses)
    return Sent(packed(change, c.bits), kept, loss)


def packed(change: Pools, bits: int) -> dict[str, Tensor]:
    if bits == 32:
        return dict(change)
    codes, scales = zip(*(coded(v, bits) for v in change.values()))
    return {"codes": torch.cat(codes), "scales": torch.stack(scales)}


def unpacked(setting: Setting, round: int, tensors: Pools) -> Pools:
    """A reply's outer gradient, by pool."""
    bits = setting.config.bits
    if bits == 32:
        return tensors
    pools = {n: setting.pools[n] for n in going(setting, round)}
    parts = tensors["codes"].split([nbytes(p.numel, bits) for p in pools.values()])
    return {
        n: decoded(part, scale, bits, p.shape) for (n, p), part, scale in zip(pools.items(), parts, tensors["scales"])
    }


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    c, shares = setting.config, weights(replies, setting.weigh)
    each = [unpacked(setting, round, r.tensors) for r in replies]
    change = {n: mean([e[n] for e in each], shares) for n in going(setting, round)}
    speed = {n: state.tensors[k] for n in change if (k := f"speed/{n}") in state.tensors}
    new, fast = nesterov(state.tensors, speed, change, c.outer_lr, c.outer_momentum)
    norm = float(sum(float(d.double().square().sum()) for d in change.values())) ** 0.5
    tensors = state.tensors | new | {f"speed/{n}": v for n, v in fast.items()}
    return State(tensors, state.facts, {"outer_norm": norm})


def pools(setting: Setting, state: State) -> Pools:
    return {n: state.tensors[n] for n in setting.travels}


def size(setting: Setting, round: int, client: int) -> tuple[int, int]:
    names, bits = going(setting, round), setting.config.bits
    out = sum(nbytes(setting.pools[n].numel, bits) + (4 if bits < 32 else 0) for n in names)
    return out, sum(4 * setting.pools[n].numel for n in going(setting, round - 1)) if round else 0


@method(
    "diloco",
    DiLoCo,
    paper="Streaming DiLoCo with overlapping communication: Towards a Distributed Free Lunch, arXiv 2501.18512",
    id=37,
    begin=begin,
    down=down,
    tell=tell,
    up=up,
    client=client,
    gather=gather,
    pools=pools,
    nbytes=size,
    formula="bits p / (8 P) up, 4 p / P down, with P fragments; with 8 or 4 bits 4 more for each pool",
    keeps="the pools, and an outer momentum for each number",
    each="its own numbers, the server's last ones, the optimiser's two moments: 4 p numbers",
    noise="a client sends the change of one fragment, not its pools",
    sends="changes",
    uncoded=lambda c, way: (
        f"bits={c.bits} codes what goes up already; give one of both" if way == "up" and c.bits < 32 else ""
    ),
)
def adapter(config: DiLoCo) -> tuple[str, dict[str, Any]]:
    """D = mean over clients of (theta_outer - theta_n); v <- mu v + D; theta_outer <- theta_outer - eta (D + mu v);
    tau steps later theta_n <- alpha theta_n + (1 - alpha) theta_outer. The clients' AdamW goes on through all rounds.

    Source: arXiv 2311.08105 and 2501.18512; maxtext's and torchft's code. Differs: what goes down is float32; a client
    that missed a round has its fragment from before. Then D is the change from what it last heard. What is in no
    layer is in the first fragment; maxtext makes one of it.
    """
    return config.adapter, dict(config.options)
