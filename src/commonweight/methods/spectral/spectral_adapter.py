"""Spectral Adapter: the first singular vectors of every weight are moved, at their own singular values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Anchored
from ...core import BaseWeight, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..low_rank.anchored import twins
from ..low_rank.lora_xs import fits
from ..registry import method


@config
class SpectralAdapter:
    rank: int = option(8, "how many singular vectors are moved, those of the largest values", ge=1)


@serial
@dataclass(frozen=True)
class ValuesOfSVD:
    """diag(S_r) of a site's weight in bfloat16, (r, r)."""

    site: str
    derived: ClassVar[bool] = True

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.diag(base.svd(self.site, True)[1][: shape[0]])


@method(
    "spectral-adapter",
    SpectralAdapter,
    paper="Spectral Adapter: Fine-Tuning in Spectral Space, arXiv 2405.13952",
    formula="sum over sites of r (d_in + d_out)",
    depthwise=False,
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: SpectralAdapter) -> Plan:
    """W' = (U_r + B') S_r (V_r + A')^T + the rest of W; the pools hold B = U_r + B' and A = (V_r + A')^T.

    Shapes: A (r, d_in), B (d_out, r). Linear in: A and B, each alone. Source: arXiv 2405.13952, eq. for the additive
    form (A). Differs: of the official code's blocks of vectors the first alone; in the file are the moved vectors, not
    the moves, so that a base in another precision with other signs still gives the same weight; the rotational form is
    not built.
    """
    pools, uses = {}, []
    for s in sites:
        r = config.rank
        fits("spectral-adapter", s, r)
        shapes = {"A": ("V", (r, s.inp)), "B": ("U", (s.out, r))}
        starts = {k: (shape, BaseWeight(s.name, part, 0.0, rounded=True)) for k, (part, shape) in shapes.items()}
        mine, reads = twins(s.name, starts)
        pools |= mine
        pools[f"{s.name}.S"] = Pool((r, r), ValuesOfSVD(s.name), train=False, save=False)
        uses.append(Use(s.name, Anchored(), {**reads, **dict.fromkeys(("M", "M0"), Read(WHOLE, (f"{s.name}.S",)))}))
    return Plan(pools, tuple(uses))
