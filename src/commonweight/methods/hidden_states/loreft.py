"""LoReFT: edits the hidden states after a block in a low-rank subspace; no weight is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Edit
from ...core import (
    ZEROS,
    CommonweightError,
    Orthonormal,
    Plan,
    Pool,
    Read,
    Rng,
    Site,
    Source,
    Use,
    config,
    kaiming,
    option,
    serial,
)
from ..registry import method


@config
class LoReFT:
    rank: int = option(4, "rank r of the subspace", ge=1)
    layers: tuple[int, ...] = option((), "which of the model's blocks, counted from 0 (or -1 from the end); () = all")
    prefix: int = option(0, "edit only so many first tokens of a row, padding aside; 0 = all of them", ge=0)
    direct: bool = option(False, "DiReFT: no orthonormal rows and no R h inside")


@serial
@dataclass(frozen=True)
class Still:
    """R and W, (2, r, d), such that the edit is nothing: W = R; direct: R = 0 beside a random W."""

    direct: bool = False

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        if self.direct:
            w = kaiming(shape[-1])(shape[1:], rng, base)
            return torch.stack([torch.zeros_like(w), w])
        return Orthonormal()(shape[1:], rng, base).expand(shape).clone()


@method(
    "loreft",
    LoReFT,
    paper="ReFT: Representation Finetuning for Language Models, arXiv 2404.03592",
    formula="sum over blocks of 2 r d + r",
    kinds=("block",),
    named=(),
    lr=3e-3,
)
def plan(sites: Sequence[Site], config: LoReFT) -> Plan:
    """h' = h + R^T (W h + b - R h) on a block's output h; direct: h' = h + R^T (W h + b), R free (DiReFT).

    Shapes: R and W (r, d) in one pool (2, r, d), b (r,). R has orthonormal rows whatever the pool holds: its
    triangular factor is taken out at every call. Linear in: W and b. Cost: 2 T r d + 2 r^2 d products a block.
    Source: arXiv 2404.03592, section 3.2. Differs: W starts at R and b at zero, so that a fresh
    tenant is the base (pyreft draws W apart); the same R, W, b at every edited position; a prefix is of a row's
    own tokens, padding aside and with those in a cache; no suffix positions and no dropout.
    Raises: CommonweightError for a block that is not there, or r > d.
    """
    n, r = len(sites), config.rank
    for i in config.layers:
        if not -n <= i < n:
            raise CommonweightError(f"loreft: layers names block {i}, but there are {n}; choose from 0 to {n - 1}")
    chosen = {i % n for i in config.layers} or range(n)
    pools, uses = {}, []
    for i, s in enumerate(sites):
        if i not in chosen:
            continue
        if r > s.out:
            raise CommonweightError(f"loreft: {s.name}: rank={r} is more than the width {s.out}; lower the rank")
        pools[f"{s.name}.RW"] = Pool((2, r, s.out), Still(config.direct))
        pools[f"{s.name}.b"] = Pool((r,), ZEROS)
        uses.append(
            Use(s.name, Edit(config.prefix, config.direct), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in ("RW", "b")})
        )
    return Plan(pools, tuple(uses))
