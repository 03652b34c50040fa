"""HRA: the input is mirrored r times, each time at a trained hyperplane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE
from ...core import Base, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..registry import method


@config
class HRA:
    rank: int = option(8, "number r of reflections, even: they start in equal pairs, which undo each other", ge=2)

    def check(self) -> str | None:
        return f"rank={self.rank} is odd; reflections start in pairs, choose an even one" if self.rank % 2 else None


@serial
@dataclass(frozen=True)
class Pairs:
    """Columns in equal pairs, uniform in [-bound, bound)."""

    bound: float

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.uniform((shape[0], shape[1] // 2), -self.bound, self.bound).repeat_interleave(2, dim=1)


@serial
@dataclass(frozen=True)
class Reflect:
    """w' = w H_1 ... H_r, H_i = I - 2 u_i u_i^T / |u_i|^2. The bias stays. Shapes: U (d_in, r). Linear in: nothing.

    Cost of `input`: 4 T d_in r products; of `weight`: 4 d_out d_in r.
    """

    precise = True

    def weight(self, w: Tensor, U: Tensor) -> Tensor:
        U = U / U.norm(dim=0)
        for u in U.unbind(1):
            w = w - 2 * torch.outer(w @ u, u)
        return w

    def input(self, x: Tensor, base: Base, U: Tensor) -> Tensor:
        U, z = U / U.norm(dim=0), x.to(U.dtype)
        for u in reversed(U.unbind(1)):
            z = z - 2 * (z @ u)[..., None] * u
        return z.to(x.dtype)


@method(
    "hra",
    HRA,
    paper="Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection, arXiv 2405.17484",
    formula="sum over sites of r d_in",
    lr=3e-3,
)
def plan(sites: Sequence[Site], config: HRA) -> Plan:
    """W' = W H_1 ... H_r, Householder reflections of the input; u_1 = u_2, u_3 = u_4, ... at the start.

    Shapes: U (d_in, r). Linear in: nothing. Cost: 4 T d_in r products a site, no dense weight.
    Source: arXiv 2405.17484; order and start as PEFT 0.21.2. Differs: an odd r is refused, since a fresh tenant would
    not be the base; PEFT's apply_GS and the paper's penalty on U^T U are not built.
    """
    pools, uses = {}, []
    for s in sites:
        pools[f"{s.name}.U"] = Pool((s.inp, config.rank), Pairs((2.0 / config.rank) ** 0.5))
        uses.append(Use(s.name, Reflect(), {"U": Read(WHOLE, (f"{s.name}.U",))}))
    return Plan(pools, tuple(uses))
