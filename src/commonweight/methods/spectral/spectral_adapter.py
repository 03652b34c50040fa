"""Spectral Adapter: the first singular vectors of every weight are moved, or turned among each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Anchored, LowRank, active
from ...bind.rotate import cayley, skew
from ...core import ONES, ZEROS, Base, BaseWeight, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..low_rank.anchored import twins
from ..low_rank.lora_xs import fits
from ..registry import method
from ..widths import ranked
from .svf import Singular


@config
class SpectralAdapter:
    rank: int = option(8, "how many singular vectors are moved, those of the largest values", ge=1)
    form: Literal["additive", "rotational"] = option(
        "additive", "additive: something is added to each vector; rotational: they are turned among each other"
    )


@serial
@dataclass(frozen=True)
class ValuesOfSVD:
    """diag(S_r) of a site's weight in bfloat16, (r, r)."""

    site: str
    derived: ClassVar[bool] = True

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.diag(base.svd(self.site, True)[1][: shape[0]])


@serial
@dataclass(frozen=True)
class Turned:
    """w' = w + U (Q_X diag(s c) Q_Y^T - diag(s)) V^T, Q_X and Q_Y orthogonal by Cayley's map.

    Shapes: A = V^T (r, d_in), B = U (d_out, r), s and c (r,), X and Y (1, r (r - 1) / 2), upper triangles of skew
    matrices, which one vector alone has not. Linear in: c. Cost: as LowRank, and two solves of r^3.
    """

    anywhere: ClassVar[str] = "through"
    precise: ClassVar[bool] = True

    def slots(
        self, dtype: torch.dtype, A: Tensor, B: Tensor, s: Tensor, c: Tensor, **turns: Tensor
    ) -> dict[str, Tensor]:
        r = len(s)
        X, Y = (cayley(skew(turns[k], r))[0] if k in turns else s.new_zeros(r, r) for k in "XY")
        now = torch.diag(s * c)
        M = torch.diag(s * (c - 1)) + X @ now + now @ Y.mT + X @ now @ Y.mT  # small differences, before any rounding
        return {"A": A.to(dtype), "B": B.to(dtype), "M": M.to(dtype)}

    def factors(self, **slots: Tensor) -> tuple[Tensor, Tensor]:
        return LowRank().factors(**self.slots(slots["c"].dtype, **slots))

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return LowRank().weight(w, **self.slots(w.dtype, **slots))

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank().output(x, y, base, **self.slots(active(x, y), **slots))


@method(
    "spectral-adapter",
    SpectralAdapter,
    paper="Spectral Adapter: Fine-Tuning in Spectral Space, arXiv 2405.13952",
    formula="sum over sites of r (d_in + d_out); rotational: r^2",
    depthwise=False,
    unfit=ranked(),
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: SpectralAdapter) -> Plan:
    """W' = (U_r + B') S_r (V_r + A')^T + the rest of W; the pools hold B = U_r + B' and A = (V_r + A')^T.

    rotational: W' = U_r Q_X (S_r c) (V_r Q_Y)^T + the rest, Q = (I - K) (I + K)^-1 of a skew K; K is zero and c one at
    the start. Shapes: A (r, d_in), B (d_out, r); rotational: X and Y (1, r (r - 1) / 2), c (r,). Linear in: A and B,
    each alone. Source: arXiv 2405.13952, its forms (A) and (R); github.com/pilancilab/spectral_adapter @3c18280.
    Differs: of the official code's blocks of vectors the first alone; in the file are the moved vectors, not
    the moves, so that a base in another precision with other signs still gives the same weight. (R): X and Y are the
    numbers of their skew parts, where the code has whole matrices of which these parts alone act; it trains c as here.
    """
    rotational = config.form == "rotational"
    pools, uses = {}, []
    for s in sites:
        n, r = s.name, config.rank
        fits("spectral-adapter", s, r)
        shapes = {"A": ("V", (r, s.inp)), "B": ("U", (s.out, r))}
        starts = {k: (shape, BaseWeight(n, part, 0.0, rounded=True)) for k, (part, shape) in shapes.items()}
        if rotational:
            mine = {k: Pool(shape, init, train=False, save=False) for k, (shape, init) in starts.items()}
            mine |= {"s": Pool((r,), Singular(n), train=False, save=False), "c": Pool((r,), ONES)}
            mine |= {k: Pool((1, r * (r - 1) // 2), ZEROS) for k in "XY" if r > 1}
            pools |= {f"{n}.{k}": p for k, p in mine.items()}
            uses.append(Use(n, Turned(), {k: Read(WHOLE, (f"{n}.{k}",)) for k in mine}))
            continue
        mine, reads = twins(n, starts)
        pools |= mine
        pools[f"{n}.S"] = Pool((r, r), ValuesOfSVD(n), train=False, save=False)
        uses.append(Use(n, Anchored(), {**reads, **dict.fromkeys(("M", "M0"), Read(WHOLE, (f"{n}.S",)))}))
    return Plan(pools, tuple(uses))
