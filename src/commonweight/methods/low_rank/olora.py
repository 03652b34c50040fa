"""OLoRA: LoRA that begins in the first directions of a QR decomposition of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...bind import Anchored
from ...core import Plan, Rng, Site, Source, Use, config, option, serial
from ..registry import method
from ..widths import ranked
from .anchored import twins
from .lora_xs import fits


@config
class OLoRA:
    rank: int = option(8, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)


@serial
@dataclass(frozen=True)
class QR:
    """W = Q R: the first columns of Q (out, r), or the first rows of R (r, inp)."""

    site: str
    part: str
    derived: ClassVar[bool] = True
    checked: ClassVar[bool] = False  # turned signs leave the product what it is

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        q, r = torch.linalg.qr(base.weight(self.site).double())
        return (q[:, : shape[1]] if self.part == "Q" else r[: shape[0]]).float().contiguous()


@method(
    "olora",
    OLoRA,
    paper="OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models, arXiv 2406.01775",
    formula="sum over sites of r (d_in + d_out)",
    depthwise=False,
    unfit=ranked(),
    lr=5e-4,
)
def plan(sites: Sequence[Site], config: OLoRA) -> Plan:
    """W' = W + s (B A - B0 A0), W = Q R, B0 the first r columns of Q, A0 the first r rows of R; A and B begin there.

    Shapes: A (r, d_in), B (d_out, r). Linear in: A and B, each alone. Source: arXiv 2406.01775, algorithm 1. Differs:
    the base, which others read too, keeps W; the frozen product is rebuilt from W and taken away in the same pass.
    Raises: when r is more than a width.
    """
    s = 1.0 if config.alpha is None else config.alpha / config.rank
    pools, uses = {}, []
    for site in sites:
        fits("olora", site, config.rank)
        shapes = {"A": ("R", (config.rank, site.inp)), "B": ("Q", (site.out, config.rank))}
        mine, reads = twins(site.name, {k: (shape, QR(site.name, part)) for k, (part, shape) in shapes.items()})
        pools |= mine
        uses.append(Use(site.name, Anchored(s), reads))
    return Plan(pools, tuple(uses))
