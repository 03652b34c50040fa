"""PSRP, of MP+: what the feed-forward part gives is scaled and shifted by what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...core import ZEROS, Base, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ..registry import method


@config
class PSRP:
    size: int = option(16, "width r of the bottleneck, which scale and shift share", ge=1)


@serial
@dataclass(frozen=True)
class Recalibrated:
    """y' = (1 + W h) o y + B h with h = relu(D x), x what the part is given, o entry by entry.

    Shapes: D (r, d_in), W and B (d_out, r). Linear in: W and B together. Cost: T r (d_in + 2 d_out) products.
    """

    def output(self, x: Tensor, y: Tensor, base: Base, D: Tensor, W: Tensor, B: Tensor) -> Tensor:
        h = F.relu(F.linear(x, D))
        return y + F.linear(h, W) * y + F.linear(h, B)

    def grouped(self, x: Tensor, y: Tensor, base: Base, D: Tensor, W: Tensor, B: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), D (n, r, d_in), ..."""
        h = F.relu(torch.bmm(x, D.mT))
        return torch.baddbmm(y + torch.bmm(h, W.mT) * y, h, B.mT)


@method(
    "psrp",
    PSRP,
    paper="Tuning Pre-trained Model via Moment Probing, arXiv 2307.11342 (MP+)",
    formula="sum over parts of r (d_in + 2 d_out)",
    kinds=("ffn",),
    named=("attention",),
    lr=1e-3,
    size=("size",),
)
def plan(sites: Sequence[Site], config: PSRP) -> Plan:
    """y' = y + b + w o y, w = W relu(D x), b = B relu(D x): x what the part is given, y what it gives.

    Shapes: D (r, d_in), W and B (d_out, r), zero at the start. Linear in: W and B. It cannot be merged into weights.
    Source: arXiv 2307.11342; github.com/mingzeG/Moment-Probing @0ddc040 (models/representation/PSRP.py). Differs: in
    models whose norm stands before a part, x is the normed state, theirs the state before it; W and B are drawn there,
    so that a fresh one is not the base. MP's moments are the method `mp`,
    which has this beside them with `psrp`.
    """
    pools, uses = {}, []
    for s in sites:
        pools[f"{s.name}.D"] = Pool((config.size, s.inp), kaiming(s.inp))
        pools |= {f"{s.name}.{k}": Pool((s.out, config.size), ZEROS) for k in "WB"}
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "DWB"}
        uses.append(Use(s.name, Recalibrated(), reads))
    return Plan(pools, tuple(uses))
