"""NLoRA: the three matrices of StructuredLoRA start as a Nystrom approximation of the base's weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Anchored, LowRank
from ...core import ZEROS, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..registry import method
from ..widths import ranked
from .lora_xs import fits

# With init="nystrom", A and B: one Adam step then moves a random W of width 1024 to 2048 about as far as LoRA's does.
STEEP = 1 / 400


@config
class NLoRA:
    rank: int = option(8, "rank r of the update", ge=1)
    init: Literal["block", "nystrom"] = option(
        "block", "M at the start: the leading block of W, as in the official code, or its pseudo-inverse (Nystrom)"
    )
    train: Literal["all", "intermediate"] = option("all", "all three matrices, or only M (IntTune)")
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank", gt=0)


@serial
@dataclass(frozen=True)
class Corner:
    """The leading rows and columns of a site's weight, as many as the pool has; or the pseudo-inverse of them.

    Singular values below a thousandth of the largest are left out of the inverse: they would be noise times 1000.
    """

    site: str
    inverse: bool = False
    derived: ClassVar[bool] = True

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        block = base.weight(self.site)[: shape[0], : shape[1]]
        return torch.linalg.pinv(block.double(), rtol=1e-3).float() if self.inverse else block.clone()


@method(
    "nlora",
    NLoRA,
    paper="NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models, arXiv 2502.14482",
    formula="sum over sites of r (d_in + d_out + r); train=intermediate: r * r per site",
    depthwise=False,
    unfit=ranked(),
    lr=2e-3,
)
def plan(sites: Sequence[Site], config: NLoRA) -> Plan:
    """W' = W + s (B M A - B0 M0 A0), s = alpha / r: A0 = W[:r], B0 = W[:, :r], M0 from W[:r, :r].

    Shapes: A (r, d_in), M (r, r), B (d_out, r). Affine in: A, M and B, each alone. Cost: two LoRAs; the frozen start
    is cut from the base again and is in no file. With train="intermediate" A0 and B0 stay frozen and only the change
    M - M0 is trained, from zero, at the cost of one LoRA; `init` then makes no difference.
    Nystrom's approximation of W has M0 = W[:r, :r]^+ (init="nystrom"), a large inverse through which A and B move W
    far: their learning rate is lowered. The official code starts M at the block itself, as we do by default.
    Source: arXiv 2502.14482, the Nystrom initialisation and IntTune. Differs: the start is subtracted, so that a fresh
    tenant is the base; the official code adds it on top of the weight.
    Raises: for a rank above the weight's.
    """
    pools, uses, r = {}, [], config.rank
    scale = (r if config.alpha is None else config.alpha) / r
    whole = config.train == "all"
    for s in sites:
        fits("nlora", s, r)
        for k, shape in (("A", (r, s.inp)), ("M", (r, r)), ("B", (s.out, r))):
            init = Corner(s.name, k == "M" and config.init == "nystrom")
            if whole:
                pools[f"{s.name}.{k}"] = Pool(shape, init, lr=STEEP if config.init == "nystrom" and k != "M" else 1.0)
            if whole or k != "M":
                pools[f"{s.name}.{k}0"] = Pool(shape, init, train=False, save=False)
        if whole:
            reads = {k: k for k in ("A", "M", "B", "A0", "M0", "B0")}
        else:
            pools[f"{s.name}.M"] = Pool((r, r), ZEROS)
            reads = {"A": "A0", "M": "M", "B": "B0"}
        bind = Anchored(scale) if whole else LowRank(scale)
        uses.append(Use(s.name, bind, {slot: Read(WHOLE, (f"{s.name}.{k}",)) for slot, k in reads.items()}))
    return Plan(pools, tuple(uses))
