"""SODA: singular values shift, and the input is turned by a Kronecker product of small rotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank, active
from ...bind.rotate import cayley, skew
from ...core import ZEROS, Base, BaseWeight, Eyes, Plan, Pool, Read, Site, Use, config, option, serial
from ..registry import method
from .svf import Singular

TABLE = {640: (8, 8, 10), 768: (6, 8, 16), 1280: (4, 16, 20), 2048: (4, 8, 64)}  # of the released code


@config
class SODA:
    turns: Literal["cayley", "stiefel"] = option(
        "cayley", "how factors stay orthogonal: Cayley's map of half the numbers, or steps on the manifold (geoopt)"
    )


@lru_cache(maxsize=4096)
def sides(width: int) -> tuple[int, int, int]:
    """Three numbers whose product is the width: those of the released code, else as near to each other as can be."""
    if width in TABLE:
        return TABLE[width]
    found = [
        (a, b, width // (a * b))
        for a in range(1, round(width ** (1 / 3)) + 1) if width % a == 0
        for b in range(a, round((width / a) ** 0.5) + 1) if width // a % b == 0
    ]  # fmt: skip
    return min(found, key=sum)


@serial
@dataclass(frozen=True)
class SpectralTurn:
    """w' = U diag(relu(s + delta)) V^T R^T, R = Q_0 kron Q_1 kron Q_2, Q_i orthogonal. The bias stays.

    Shapes: A = V^T (r, d_in), B = U (d_out, r), s and delta (r,), Q0, Q1, Q2 of the sides b > 1: (1, b (b - 1) / 2),
    upper triangles of skew matrices of which Cayley's map makes Q_i; direct: (1, b, b), Q_i itself. Linear in: nothing.
    Cost: T d_in (b_0 + b_1 + b_2) products for the input, T r (d_in + d_out) for the values, and if not direct three
    solves of b^3.
    """

    sides: tuple[int, int, int]
    direct: bool = False
    precise: ClassVar[bool] = True

    def turn(self, x: Tensor, slots: Mapping[str, Tensor], inverse: bool) -> Tensor:
        """R x of each vector along the last dimension, or R^T x; a factor is x + (Q - I) x, for small angles."""
        was, after = x.shape, x.shape[-1]
        for i, side in enumerate(self.sides):
            after //= side
            if side > 1:
                D = self._less_one(slots[f"Q{i}"], side).to(x.dtype)
                parts = x.reshape(*was[:-1], -1, side, after)
                x = (parts + (D.mT if inverse else D) @ parts).reshape(was)
        return x

    def _less_one(self, Q: Tensor, side: int) -> Tensor:
        """Q_i - I, (b, b)."""
        return Q[0] - torch.eye(side, dtype=Q.dtype, device=Q.device) if self.direct else cayley(skew(Q, side))[0]

    def values(self, dtype: torch.dtype, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
        moved = torch.relu(slots["s"] + slots["delta"]) - slots["s"]
        return {"A": slots["A"].to(dtype), "B": slots["B"].to(dtype), "d": moved.to(dtype)}

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        return self.turn(LowRank().weight(w, **self.values(w.dtype, slots)), slots, False)

    def input(self, x: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return self.turn(x, slots, True)

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        """x is turned already."""
        return LowRank().output(x, y, base, **self.values(active(x, y), slots))


def _turn(side: int, whole: bool) -> Pool:
    if whole:
        return Pool((1, side, side), Eyes(), optimizer="stiefel")
    return Pool((1, side * (side - 1) // 2), ZEROS)


@method(
    "soda",
    SODA,
    paper="Spectrum-Aware Parameter Efficient Fine-Tuning for Diffusion Models, arXiv 2405.21050",
    formula="sum over sites of min(d_in, d_out) + (b^2 - b) / 2 for each of three sides b, whose product is d_in; "
    "stiefel: b^2",
    kinds=("linear",),
    depthwise=False,
    lr=3e-3,
    size=(),
)
def plan(sites: Sequence[Site], config: SODA) -> Plan:
    """W' = U diag(relu(S + delta)) V^T R^T, R = Q_0 kron Q_1 kron Q_2; delta is zero and R the identity at the start.

    Source: github.com/phymhan/SODA-Diffusion @f15ded2 (utils/pefts.py, InjectedSODA_SVD); the text of arXiv 2405.21050
    could not be read. Differs: Q_i is the Cayley map of a skew matrix, half the numbers; `turns=stiefel` has whole
    matrices as theirs has, kept orthogonal by an optimiser: Riemannian Adam here, momentum of another form there (arXiv
    2205.14173), and in both a step ends with a polar factor. delta begins at 0, theirs at 0.001, so that a fresh
    tenant is the base; any widths, theirs four and no more outputs than inputs; no scale on the layer's own output; the
    SVD is of W in bfloat16, so that a file fits copies of the base in both precisions.
    """
    pools, uses = {}, []
    for site in sites:
        n, r = site.name, min(site.out, site.inp)
        frozen = {
            f"{n}.V": Pool((r, site.inp), BaseWeight(n, "V", 0.0, rounded=True), train=False, save=False),
            f"{n}.U": Pool((site.out, r), BaseWeight(n, "U", 0.0, rounded=True), train=False, save=False),
            f"{n}.s": Pool((r,), Singular(n), train=False, save=False),
        }
        three = sides(site.inp)
        turns = {f"{n}.Q{i}": _turn(b, config.turns == "stiefel") for i, b in enumerate(three) if b > 1}
        pools |= {**frozen, f"{n}.delta": Pool((r,), ZEROS), **turns}
        slots = {"A": f"{n}.V", "B": f"{n}.U", "s": f"{n}.s", "delta": f"{n}.delta"}
        slots |= {pool.rpartition(".")[2]: pool for pool in turns}
        bind = SpectralTurn(three, config.turns == "stiefel")
        uses.append(Use(n, bind, {k: Read(WHOLE, (p,)) for k, p in slots.items()}))
    return Plan(pools, tuple(uses))
