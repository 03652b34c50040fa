"""FedCAC: what matters to a client is averaged with clients alike, the rest with all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import config, option
from ...core.bits import packed, unpacked
from ..asks import Client, Pools, Sent, Told, Train
from ..averaging import AVERAGING, means
from ..message import Part, Table, payload
from ..registry import Reply, Setting, State, method

ROUNDING = 1e-12  # ours: a mean of equal overlaps can be a digit above them, and then nobody would be alike


@config
class FedCAC:
    critical: float = option(0.5, "share tau of each pool's numbers that are critical to a client", gt=0, le=1)
    beta: int = option(100, "rounds after which critical numbers are a client's own", ge=1)
    adapter: str = option("lora", "the method that clients train: any of `commonweight methods`")
    options: tuple = option((), "the adapter's options, as (name, value) pairs; other options given are taken as these")


def mask(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Bool: the share of numbers of the largest |(new - old) new|. Exactly so many: of equals the earlier."""
    size = ((new - old) * new).abs().flatten()
    out = torch.zeros(len(size), dtype=torch.bool)
    out[size.argsort(descending=True, stable=True)[: max(1, math.floor(share * len(size)))]] = True
    return out.view(old.shape)


def joined(masks: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return packed(torch.cat([masks[n].flatten() for n in names]))


def apart(bits: Tensor, setting: Setting) -> dict[str, Tensor]:
    parts = unpacked(bits, (setting.count,)).split([p.numel for p in setting.pools.values()])
    return {n: v.view(p.shape) for v, (n, p) in zip(parts, setting.pools.items())}


def whole(setting: Setting, round: int, client: int) -> Table:
    return {n: Part(p.shape, p.dtype) for n, p in setting.pools.items()}


def up(setting: Setting, round: int, client: int) -> Table:
    return {**whole(setting, round, client), "critical": Part((-(-setting.count // 8),), "uint8")}


def tell(setting: Setting, state: State, round: int, client: int) -> Pools:
    """theta_i = L_i theta~_i + (1 - L_i) theta^; before a client's first round theta^."""
    if f"critical/{client}" not in state.tensors:
        return pools(setting, state)
    mine = apart(state.tensors[f"critical/{client}"], setting)
    return {n: torch.where(mine[n], state.tensors[f"own/{client}/{n}"], v) for n, v in pools(setting, state).items()}


def client(setting: Setting, told: Told) -> Client:
    mine = {n: told.keep.get(n, told.start[n]) for n in setting.private}
    done = yield Train({**told.tensors, **mine})
    new = {n: done.pools[n] for n in setting.travels}
    masks = {n: mask(told.tensors[n], v, setting.config.critical) for n, v in new.items()}
    sent = {**new, "critical": joined(masks, setting.travels)}
    return Sent(sent, {n: done.pools[n] for n in setting.private}, done.loss)


def overlaps(masks: Sequence[Tensor]) -> Tensor:
    """o_ij = 1 - |L_i xor L_j| / (2 |L_i|), (n, n) float64."""
    each = torch.stack(list(masks)).double()  # (n, p)
    both, count = each @ each.T, each.sum(1)
    return 1 - (count[:, None] + count[None] - 2 * both) / (2 * count[:, None]).clamp(min=1)


def threshold(overlap: Tensor, round: int, beta: int) -> float:
    """mean(o) + (t + 1) / beta (max(o) - mean(o)), of pairs of two clients."""
    pairs = overlap[~torch.eye(len(overlap), dtype=torch.bool)]
    if not len(pairs):
        return math.inf
    middle = float(pairs.mean())
    return middle + (round + 1) / beta * (float(pairs.max()) - middle) - ROUNDING


def gather(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
    """theta^ <- the weighted mean; theta~_i <- the plain mean over i and all j with o_ij >= threshold."""
    names = setting.travels
    masks = [apart(r.tensors["critical"], setting) for r in replies]
    overlap = overlaps([torch.cat([m[n].flatten() for n in names]) for m in masks])
    least = threshold(overlap, round, setting.config.beta)
    out = {**state.tensors, **means(setting, pools(setting, state), replies)}
    sizes = []
    for i, r in enumerate(replies):
        alike = [q for j, q in enumerate(replies) if j == i or float(overlap[i, j]) >= least]
        sizes.append(len(alike))
        out[f"critical/{r.client}"] = r.tensors["critical"]
        for n in names:
            out[f"own/{r.client}/{n}"] = torch.stack([q.tensors[n] for q in alike]).double().mean(0).float()
    return State(out, state.facts, {"alike": sum(sizes) / len(sizes)})


def pools(setting: Setting, state: State) -> dict[str, Tensor]:
    return {n: state.tensors[n] for n in setting.travels}


def nbytes(setting: Setting, round: int, client: int) -> tuple[int, int]:
    return payload(up(setting, round, client)), 4 * setting.count


@method(
    "fedcac",
    FedCAC,
    paper="Bold but Cautious: Unlocking the Potential of Personalized Federated Learning through Cautiously Aggressive "
    "Collaboration, arXiv 2309.11103",
    id=16,
    **{
        **AVERAGING, "down": whole, "up": up, "tell": tell, "client": client, "gather": gather, "pools": pools,
        "nbytes": nbytes, "broadcast": False, "formula": "4 p + p / 8 up, 4 p down",
        "keeps": "the pools, and of every client its own and a bit for each number",
        "noise": "clients send masks beside their pools",
    },
)  # fmt: skip
def adapter(config: FedCAC) -> tuple[str, dict[str, Any]]:
    """A client's critical numbers L_i, the largest |(theta_new - theta_old) theta_new| of each pool, come from clients
    whose L overlaps; all others from everybody.

    Source: arXiv 2309.11103, equations 3 to 7, and its code. Differs: the server mixes, so that one model comes down
    and not two; of equal sizes so many are critical as the share says; among the clients of a round, where not all
    take part.
    """
    return config.adapter, dict(config.options)
