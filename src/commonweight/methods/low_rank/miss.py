"""MiSS: one block of rows is trained, and every shard of the input reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..registry import method


@config
class MiSS:
    rank: int = option(16, "rank r: rows of the block; the input is cut into shards of r", ge=1)
    dropout: float = option(0.0, "dropout on the input, in training", ge=0, le=0.95)


@serial
@dataclass(frozen=True)
class Shards:
    """Ones where column j stands at place j mod r of its shard, else zeros, (r, d_in); the last shard may be short."""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return (torch.arange(shape[1]) % shape[0] == torch.arange(shape[0])[:, None]).float()


@method(
    "miss",
    MiSS,
    paper="MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure, arXiv 2409.15371",
    formula="sum over sites of r d_out",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: MiSS) -> Plan:
    """y = W x + D^T (sum over shards of x), D zero at the start.

    Shapes: B = D^T (d_out, r); A (r, d_in) sums the shards and is frozen, from no draw. Linear in: B. Cost: as LoRA.
    Source: arXiv 2409.15371; the last, short shard is filled with zeros as in PEFT 0.21.2. Differs: PEFT's variants
    "bat" and "mini" are not built.
    """
    pools, uses, r = {}, [], config.rank
    for s in sites:
        pools[f"{s.name}.A"] = Pool((r, s.inp), Shards(), train=False, save=False)
        pools[f"{s.name}.B"] = Pool((s.out, r), ZEROS)
        uses.append(Use(s.name, LowRank(1.0, config.dropout), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}))
    return Plan(pools, tuple(uses))
