"""Intrinsic dimension: one short vector moves every weight through a fixed random projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...address import WHOLE, Signed
from ...bind import LowRank, Shift
from ...core import ZEROS, Normal, Plan, Pool, Read, Rng, Site, Source, Use, config, kaiming, option, serial
from ..registry import method


@config
class Intrinsic:
    dim: int = option(10_000, "length d of the one trained vector", ge=1)
    space: Literal["weight", "lora", "core"] = option(
        "lora",
        "what the vector moves: every weight; the B of a LoRA whose A is random and frozen; or the (r, r) core between "
        "an A and a B that the tenants of a common train together",
    )
    rank: int = option(8, "rank r of the update; none with space=weight", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


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
    formula="d, whatever the model; space=core: and r (d_in + d_out) per site, once for all tenants",
    lr=1e-2,
    common="with space=core, A and B; its own: theta",
    size=("dim",),
)
def plan(sites: Sequence[Site], config: Intrinsic) -> Plan:
    """theta_D = theta_D0 + P theta_d: only theta_d is trained, from zero; P is random and rebuilt from the seed.

    Shapes: theta (d,), P's index as the target: W (d_out, d_in), B (d_out, r) or M (r, r). Each row of P has one
    non-zero, +-sqrt(d / D), so that its columns have about unit length. Linear in: theta.
    Cost: space="weight" holds 4 bytes per weight for the index and builds a full delta in every forward pass: for
    small models and studies. space="lora": 4 bytes per entry of B, then as LoRA; "core": 4 r^2 bytes a site.
    space="core" is ours: dW = (alpha / r) B M A, where A and B of every site are trained by the tenants of a common
    and M = P theta; a late tenant's vector then moves in the subspaces that they have found. A starts as LoRA's, B with
    variance 1 / r.
    Source: arXiv 1804.08838, eq. (2). Differs: P is a signed hash (count sketch) in place of the paper's dense, sparse
    or Fastfood matrices, over the chosen sites only; the step is not scaled down for the number of sites that read
    theta, since P's columns have that already.
    """
    d, r = config.dim, config.rank
    slot, target = {"weight": ("dw", None), "lora": ("B", "out"), "core": ("M", "rank")}[config.space]
    shapes = [(s.out, s.inp) if target is None else (s.out if target == "out" else r, r) for s in sites]
    norm = math.sqrt(d / sum(map(math.prod, shapes)))
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    bind = Shift(norm) if target is None else LowRank(scale * norm, config.dropout)
    kept: dict[str, Any] = {"scope": "shared", "lr": 0.2} if slot == "M" else {"train": False, "save": False}
    pools = {"theta": Pool((d,), ZEROS, lr=math.sqrt(len(sites)))}
    uses = []
    for s, shape in zip(sites, shapes):
        pools[f"{s.name}.index"] = Pool(shape, Draw(2 * d), train=False, save=False, dtype="int32")
        reads = {slot: Read(Signed(), ("theta", f"{s.name}.index"))}
        if target is not None:
            pools[f"{s.name}.A"] = Pool((r, s.inp), kaiming(s.inp), **kept)
            reads["A"] = Read(WHOLE, (f"{s.name}.A",))
        if slot == "M":
            pools[f"{s.name}.B"] = Pool((s.out, r), Normal(1 / math.sqrt(r)), **kept)
            reads["B"] = Read(WHOLE, (f"{s.name}.B",))
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
