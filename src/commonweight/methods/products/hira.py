"""HiRA: the weight itself times a low-rank matrix, entry by entry: a change of full rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...address import WHOLE
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ..registry import method


@config
class HiRA:
    rank: int = option(32, "rank r of the factor", ge=1)


@serial
@dataclass(frozen=True)
class Entrywise:
    """w' = w o (1 + B A). Shapes: A (r, d_in), B (d_out, r). Linear in: A and B, each alone. Cost: r d_in d_out.

    It has the weight form alone: without forming it, a call would cost r products with w.
    """

    precise = True

    def weight(self, w: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return w + w * (B @ A)


@method(
    "hira",
    HiRA,
    paper="HiRA: Parameter-Efficient Hadamard High-Rank Adaptation, ICLR 2025",
    formula="sum over sites of r (d_in + d_out)",
    lr=3e-3,
)
def plan(sites: Sequence[Site], config: HiRA) -> Plan:
    """W' = W + W o (B A), entry by entry; A uniform and B zero at the start.

    Shapes: A (r, d_in), B (d_out, r). Linear in: A and B, each alone. Cost: forming W' in every call, r d_in d_out.
    Source: as PEFT 0.21.2 has it, without a scale; the paper was not at hand. Differs: no dropout.
    """
    pools, uses = {}, []
    for s in sites:
        pools[f"{s.name}.A"] = Pool((config.rank, s.inp), kaiming(s.inp))
        pools[f"{s.name}.B"] = Pool((s.out, config.rank), ZEROS)
        uses.append(Use(s.name, Entrywise(), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}))
    return Plan(pools, tuple(uses))
