"""Intrinsic dimension: one short vector moves every weight through a fixed random projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..address import WHOLE, Signed
from ..bind import LowRank, Shift
from ..core import ZEROS, Plan, Pool, Read, Rng, Site, Source, Use, config, kaiming, option, serial
from .registry import method


@config
class Intrinsic:
    dim: int = option(10_000, "length d of the one trained vector", ge=1)
    space: Literal["weight", "lora"] = option(
        "lora", "what the vector moves: every weight, or the B of a LoRA whose A is random and frozen"
    )
    rank: int = option(8, "with space=lora: rank r of the update", ge=1)
    alpha: float | None = option(None, "with space=lora: numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "with space=lora: dropout on the input of A, in training", ge=0, le=0.95)


@serial
@dataclass(frozen=True)
class Draw:
    """Integers in [0, high), each as likely."""

    high: int

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.integers(shape, self.high)


@method(
    "intrinsic",
    Intrinsic,
    paper="Measuring the Intrinsic Dimension of Objective Landscapes, arXiv 1804.08838",
    formula="d, whatever the model",
    lr=1e-2,
    size=("dim",),
)
def plan(sites: Sequence[Site], config: Intrinsic) -> Plan:
    """theta_D = theta_D0 + P theta_d: only theta_d is trained, from zero; P is random and rebuilt from the seed.

    Shapes: theta (d,), P's index as the target: W (d_out, d_in), or B (d_out, r). Each row of P has one non-zero,
    +-sqrt(d / D), so that its columns have about unit length. Linear in: theta.
    Cost: space="weight" holds 4 bytes per weight for the index and builds a full delta in every forward pass: for
    small models and studies. space="lora": 4 bytes per entry of B, then as LoRA.
    Source: arXiv 1804.08838, eq. (2). Differs: P is a signed hash (count sketch) in place of the paper's dense, sparse
    or Fastfood matrices, over the chosen sites only; the step is not scaled down for the number of sites that read
    theta, since P's columns have that already.
    """
    low = config.space == "lora"
    d, r = config.dim, config.rank
    total = sum(s.out * (r if low else s.inp) for s in sites)
    norm = math.sqrt(d / total)
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    bind = LowRank(scale * norm, config.dropout) if low else Shift(norm)
    pools = {"theta": Pool((d,), ZEROS, lr=math.sqrt(len(sites)))}
    uses = []
    for s in sites:
        shape = (s.out, r if low else s.inp)
        pools[f"{s.name}.index"] = Pool(shape, Draw(2 * d), train=False, save=False, dtype="int32")
        reads = {"B" if low else "dw": Read(Signed(), ("theta", f"{s.name}.index"))}
        if low:
            pools[f"{s.name}.A"] = Pool((r, s.inp), kaiming(s.inp), train=False, save=False)
            reads["A"] = Read(WHOLE, (f"{s.name}.A",))
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
