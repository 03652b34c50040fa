"""MTLoRA: a low-rank update that all tasks have in common, and one of each task's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, Base, Constant, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ..registry import method


@config
class MTLoRA:
    rank: int = option(16, "rank r of the update that the tenants of a common share", ge=1)
    own: int = option(4, "rank t of a tenant's own update", ge=1)
    scale: float = option(2.0, "scale of the common update; not divided by the rank", gt=0)
    own_scale: float = option(2.0, "scale of a tenant's own update; not divided by its rank", gt=0)
    trained: bool = option(False, "train both scales, from there: one number per site and update")
    dropout: float = option(0.0, "dropout on the input of both updates, in training", ge=0, le=0.95)


@serial
@dataclass(frozen=True)
class Both:
    """w' = w + scale s B A + own t D C: two low-rank updates of one input, run as one of rank r + t.

    Shapes: A (r, d_in), B (d_out, r), C (t, d_in), D (d_out, t), s and t (1,), optional. Linear in: each slot alone.
    Cost: as LowRank of rank r + t, and laying the factors side by side. Dropout is drawn once for both.
    """

    scale: float = 1.0
    own: float = 1.0
    dropout: float = 0.0
    anywhere: ClassVar[str] = "through"

    def factors(
        self, A: Tensor, B: Tensor, C: Tensor, D: Tensor, s: Tensor | None = None, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        B, D = (B * self.scale, D * self.own)
        if s is not None and t is not None:
            B, D = B * s.unsqueeze(-1), D * t.unsqueeze(-1)
        return torch.cat([A, C], -2), torch.cat([B, D], -1)

    def weight(self, w: Tensor, **slots: Tensor) -> Tensor:
        A, B = self.factors(**slots)
        return w + B @ A

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank(1.0, self.dropout).output(x, y, base, *self.factors(**slots))

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        return LowRank(1.0, self.dropout).grouped(x, y, base, *self.factors(**slots))


@method(
    "mtlora",
    MTLoRA,
    paper="MTLoRA: A Low-Rank Adaptation Approach for Efficient Multi-Task Learning, arXiv 2403.20320",
    formula="sum over sites of (r + t) (d_in + d_out); a further tenant: t (d_in + d_out)",
    lr=1e-3,
    common="A, B and their scale; its own: C, D and theirs",
    size=("own", "rank"),
)
def plan(sites: Sequence[Site], config: MTLoRA) -> Plan:
    """h = W x + s B A x + t D C x: A and B are task-agnostic, once for the tenants of a common, C and D task-specific.

    Shapes: A (r, d_in), B (d_out, r), C (t, d_in), D (d_out, t), s and t (1,). Linear in: A, B, C and D, each alone.
    Cost: as LoRA of rank r + t. Both B and D start at zero, A and C as LoRA's A.
    Source: arXiv 2403.20320, section 3, and the official code, where the scales stand alone (not over a rank), are 2 by
    default and, if trained, are themselves what is trained; dropout is drawn once for both updates, starts are those of
    LoRA. Differs: the official model carries one stream of shared features and splits off one of each task's at the end
    of every stage, from the frozen layer and its own update ("matrix"); here a tenant has the model to itself and both
    updates act in every layer, which is the code's "matrixv2"; dropout is 0, not 0.05; the official query, key and
    value have no update of a task's own.
    """
    pools, uses = {}, []
    bind = Both(dropout=config.dropout) if config.trained else Both(config.scale, config.own_scale, config.dropout)
    for s in sites:
        n = s.name
        pools[f"{n}.A"] = Pool((config.rank, s.inp), kaiming(s.inp), scope="shared")
        pools[f"{n}.B"] = Pool((s.out, config.rank), ZEROS, scope="shared")
        pools[f"{n}.C"] = Pool((config.own, s.inp), kaiming(s.inp))
        pools[f"{n}.D"] = Pool((s.out, config.own), ZEROS)
        slots = ["A", "B", "C", "D"]
        if config.trained:
            pools[f"{n}.s"] = Pool((1,), Constant(config.scale), scope="shared")
            pools[f"{n}.t"] = Pool((1,), Constant(config.own_scale))
            slots += ["s", "t"]
        uses.append(Use(n, bind, {slot: Read(WHOLE, (f"{n}.{slot}",)) for slot in slots}))
    return Plan(pools, tuple(uses))
