"""DeLoRA: every rank-one part has length one, and one number bounds how far the weight may move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import added, added_grouped
from ...core import ZEROS, Base, Constant, Plan, Pool, Read, Rng, Site, Source, Use, config, kaiming, option, serial
from ..registry import method

FLOOR = 1e-4  # of a length, as in PEFT: B is zero at the start


@config
class DeLoRA:
    rank: int = option(8, "rank r of the update", ge=1)
    bound: float = option(1.0, "lambda at the start: bounds the update, in lengths of the weight's columns", gt=0)
    stored: bool = option(False, "keep these lengths in the file instead of taking them from the base again")


@serial
@dataclass(frozen=True)
class ColumnNorm:
    """The Euclidean length of every column of the frozen weight of `site`, (d_in,)."""

    derived: ClassVar[bool] = True

    site: str

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.linalg.vector_norm(base.weight(self.site), dim=0)


@serial
@dataclass(frozen=True)
class Bounded:
    """w' = w + B diag(l / (r |a_i| |b_i|)) A diag(n), a_i the rows of A, b_i the columns of B, lengths from FLOOR up.

    Shapes: A (r, d_in), B (d_out, r), l (1,), n (d_in,). Linear in: l. Cost of `output`: T r (d_in + d_out) products.
    """

    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True

    def factors(self, A: Tensor, B: Tensor, l: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        lengths = A.norm(dim=-1).clamp(min=FLOOR) * B.norm(dim=-2).clamp(min=FLOOR)
        return A * n[..., None, :], B * (l / A.shape[-2] / lengths)[..., None, :]

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        A, B = self.factors(**slots)
        return w + B @ A

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return added(x, y, base, *self.factors(**slots))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return added_grouped(x, y, base, *self.factors(**slots))


@method(
    "delora",
    DeLoRA,
    paper="Decoupling Angles and Strength in Low-rank Adaptation, arXiv 2503.18225",
    formula="sum over sites of r (d_in + d_out) + 1",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: DeLoRA) -> Plan:
    """W' = W + (l / r) sum_i b_i a_i^T / (|b_i| |a_i|) diag(n), n the lengths of W's columns; B zero at the start.

    Shapes: A (r, d_in), B (d_out, r), l (1,); n (d_in,) is frozen and rebuilt from the base. Linear in: l.
    Source: arXiv 2503.18225; lengths column by column and the floor as PEFT 0.21.2. Differs: no dropout; l
    begins at 1, where PEFT begins at 15, which B reaches in its first steps, since only its directions count.
    """
    pools, uses = {}, []
    for s in sites:
        pools[f"{s.name}.A"] = Pool((config.rank, s.inp), kaiming(s.inp))
        pools[f"{s.name}.B"] = Pool((s.out, config.rank), ZEROS)
        pools[f"{s.name}.l"] = Pool((1,), Constant(config.bound))
        pools[f"{s.name}.n"] = Pool((s.inp,), ColumnNorm(s.name), train=False, save=config.stored)
        uses.append(Use(s.name, Bounded(), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "ABln"}))
    return Plan(pools, tuple(uses))
