"""Ferret: clients train as usual; the change is sent as its projections on seeded directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import Rng, config, option
from ...core.directions import blocks, move_
from ..asks import Client, Diverged, Pools, Sent, Told, Train
from ..averaging import weights
from ..message import Part, Refused, Table, payload
from ..registry import Reply, Setting, State, method
from ..walk import NOISE, START, copied, first, resting, seed_of, uncoded


@config
class Ferret:
    seeds: int = option(200, "directions K of every group of pools, the same in all rounds", ge=2, le=32767)
    server_rate: float | None = option(
        None, "what the server multiplies a mean change with; none: 1, officially 10", gt=0
    )
    compat: Literal["", "official"] = option(
        "", "official: directions cut at 1 / sqrt(numbers), whose estimate is a third of the change"
    )
    adapter: str = option("lora", "the method whose pools are trained: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def groups(setting: Setting) -> list[list[str]]:
    """Pools one after the other, until a group has 0.9 of the median pool's numbers."""
    sizes = {n: p.numel for n, p in setting.pools.items()}
    enough = 0.9 * median(sizes.values())
    out: list[list[str]] = [[]]
    for n in sizes:
        if out[-1] and sum(sizes[m] for m in out[-1]) >= enough:
            out.append([])
        out[-1].append(n)
    return out


def candidate(setting: Setting, group: int, j: int) -> int:
    return seed_of(setting.seed, "ferret", group, j)


def drawn(setting: Setting, round: int, client: int, group: int, count: int) -> list[int]:
    """Which directions of a group a client uses: without replacement, on both sides by the run's seed."""
    return Rng(setting.seed, f"ferret/{round}/{client}/{group}").permutation(setting.config.seeds)[:count].tolist()


def cut(seed: int, name: str, shape: tuple[int, ...], d: int) -> Tensor:
    """The published code's: normal numbers that lie within 1 / sqrt(d), d numbers of the group; their variance is
    1 / (3 d)."""
    edge = torch.special.ndtr(torch.tensor(1 / math.sqrt(d), dtype=torch.float64))
    u = Rng(seed, name).uniform(shape).double() * (2 * edge - 1) + (1 - edge)
    return torch.special.ndtri(u).float()


def parts(setting: Setting, name: str, seed: int, d: int) -> Iterator[tuple[int, Tensor]]:
    """A direction's numbers for one pool, block by block."""
    if setting.config.compat == "official":
        yield 0, cut(seed, name, setting.pools[name].shape, d).flatten()
    else:
        yield from blocks(seed, name, setting.pools[name].numel)


def size(setting: Setting, names: Sequence[str]) -> int:
    return sum(setting.pools[n].numel for n in names)


def scalar(setting: Setting, change: Pools, names: Sequence[str], seed: int, count: int) -> float:
    """<change, z> / n; officially <change, v> d / n."""
    d = size(setting, names)
    total = 0.0
    for n in names:
        flat = change[n].reshape(-1)
        for at, z in parts(setting, n, seed, d):
            total += float(flat[at : at + len(z)].double() @ z.double())
    return total * (d if setting.config.compat == "official" else 1) / count


def rebuild(setting: Setting, start: Pools, sums: Tensor) -> dict[str, Tensor]:
    """w0 - server rate * sum over groups and directions of sums_gj z_gj. sums: (groups, K)."""
    official = setting.config.compat == "official"
    rate = setting.config.server_rate or (10.0 if official else 1.0)
    pools = copied(start, setting.travels)
    for g, (names, mine) in enumerate(zip(groups(setting), sums.tolist())):
        moves = [(candidate(setting, g, j), -rate * s) for j, s in enumerate(mine) if s]
        for n in names:
            if not official:
                move_(pools[n], n, moves)
                continue
            for seed, scale in moves:
                pools[n].add_(cut(seed, n, setting.pools[n].shape, size(setting, names)) * scale)
    return pools


def begin(setting: Setting, start: Pools) -> State:
    return State({"sums": torch.zeros(len(groups(setting)), setting.config.seeds), **first(setting, start)})


def down(setting: Setting, round: int, client: int) -> Table:
    return {"sums": Part((len(groups(setting)), setting.config.seeds))}


def up(setting: Setting, round: int, client: int) -> Table:
    """counts: directions of each group; scalars: of the first group, of the second, and so on."""
    n = len(groups(setting))
    return {"counts": Part((n,), "int16"), "scalars": Part((None,), "float32", n * setting.config.seeds)}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    return {"sums": state.tensors["sums"]}


def client(setting: Setting, told: Told) -> Client:
    before = rebuild(setting, told.start, told.tensors["sums"])
    done = yield Train({**before, **resting(setting, told.start)})
    change = {n: before[n] - done.pools[n] for n in setting.travels}
    every = groups(setting)
    norms = [math.sqrt(sum(float(change[n].double().square().sum()) for n in names)) for names in every]
    most, K = max(norms) or 1.0, setting.config.seeds
    if not math.isfinite(most):
        raise Diverged("ferret: the change is not finite")
    counts = [min(K, max(int(norm / most * K), 2)) for norm in norms]
    scalars = [
        scalar(setting, change, names, candidate(setting, g, j), counts[g])
        for g, names in enumerate(every) for j in drawn(setting, told.round, told.client, g, counts[g])
    ]  # fmt: skip
    sent = {"counts": torch.tensor(counts, dtype=torch.int16), "scalars": torch.tensor(scalars, dtype=torch.float32)}
    return Sent(sent, {}, done.loss)


def estimate(setting: Setting, round: int, reply: Reply) -> Tensor:
    """A client's scalars by group and direction, (groups, K) float64, zero where it has none."""
    out = torch.zeros(len(groups(setting)), setting.config.seeds, dtype=torch.float64)
    counts = reply.tensors["counts"].tolist()
    for g, mine in enumerate(reply.tensors["scalars"].split(counts)):
        out[g, drawn(setting, round, reply.client, g, counts[g])] = mine.double()
    return out


def check(setting: Setting, round: int, client: int, tensors: Pools) -> None:
    """Whether an answer's counts fit its scalars. Raises: Refused."""
    counts, K = tensors["counts"].tolist(), setting.config.seeds
    if sum(counts) != len(tensors["scalars"]) or not all(0 <= n <= K for n in counts):
        raise Refused("wrong shape", f"its counts are not those of its scalars, or not of 0 to {K}")


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    sums = state.tensors["sums"].double()
    for r, w in zip(replies, weights(replies, setting.weigh)):
        sums += w * estimate(setting, round, r)
    return State({**state.tensors, "sums": sums.float()}, state.facts)


def pools(setting: Setting, state: State) -> Pools:
    return rebuild(setting, {n: state.tensors[f"{START}{n}"] for n in setting.travels}, state.tensors["sums"])


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return payload(up(setting, round, client)), payload(down(setting, round, client))


@method(
    "ferret",
    Ferret,
    paper="Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models, arXiv 2409.06277",
    id=20,
    begin=begin, down=down, tell=tell, up=up, client=client, gather=gather, pools=pools, nbytes=nbytes,
    check=check,
    formula="(2 + 4 K) groups up at most: 4 for each direction used; 4 K groups down",
    keeps="K sums a group; the first pools, which the seed gives", noise=NOISE,
    uncoded=uncoded,
)  # fmt: skip
def adapter(config: Ferret) -> tuple[str, dict[str, Any]]:
    """change ~ sum over n of K seeded directions of c_j z_j, c_j = <change, z_j> / n: of mean `change`. A group of
    pools gets n = K * its share of the largest group's norm, at least 2.

    Source: arXiv 2409.06277, and its code. Its directions, cut at 1 / sqrt(d) and used with d / n, give a third of the
    change in the mean, which a server rate of 10 hides (compat="official"); its message is the dense tensor K * groups,
    ours has the scalars in use. Differs: which directions are used is drawn by the run's seed; no momentum of the
    server; steps are not clipped to norm 10.
    """
    return config.adapter, dict(config.options)
