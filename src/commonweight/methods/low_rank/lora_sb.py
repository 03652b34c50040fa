"""LoRA-SB: r x r numbers a site, between factors of the first step that full fine-tuning would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, Orthonormal, Plan, Pool, Read, Site, Use, config, option
from ...core.spectrum import svd
from ..registry import method
from ..shown import Statistics, begun
from ..widths import ranked
from .lora_xs import fits


@config
class LoRASB:
    rank: int = option(16, "rank r: r * r numbers per site", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)
    step: float = option(
        1e-4, "size of the first step, entry by entry, that it begins with; 0: begins as the base", ge=0
    )
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: from the gradient of rows; random: orthonormal A and B; given: what a start from rows becomes"
    )


def scale(config: LoRASB) -> float:
    return 1.0 if config.alpha is None else config.alpha / config.rank


def begin(config: LoRASB, sites: Sequence[Site], seen: Statistics) -> tuple[LoRASB, dict[str, Tensor]]:
    """-step sign(G) = U S V^T of the mean gradient G: B = U_r, A = V_r^T, R = S_r / s."""
    r, values = config.rank, {}
    for s in sites:
        fits("lora-sb", s, r)
        U, S, V = svd(-torch.sign(seen[s.name]))
        R = torch.diag(S[:r]) * (config.step / scale(config))
        values |= {f"{s.name}.A": V[:r].contiguous(), f"{s.name}.B": U[:, :r].contiguous(), f"{s.name}.R": R}
    return replace(config, start="given"), values


@method(
    "lora-sb",
    LoRASB,
    paper="Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning, "
    "arXiv 2411.19557",
    formula="r * r per site, whatever its widths; the file holds A and B too",
    kinds=("linear", "expert"),
    depthwise=False,
    unfit=ranked(),
    lr=1e-3,
    fresh="the first step of full fine-tuning is taken: R begins with its singular values",
    wants=lambda config: "gradient" if config.start == "rows" else "",
    begin=begin,
    ends=begun,
)
def plan(sites: Sequence[Site], config: LoRASB) -> Plan:
    """h = W x + s B R A x, s = alpha / r; only R is trained.

    Shapes: A (r, d_in), R (r, r), B (d_out, r). Linear in: R. Cost: as LoRA-XS. Source: arXiv 2411.19557, section 3,
    and github.com/CERT-Lab/lora-sb. Differs: A and B in float32, there in bfloat16; the size of the first step is an
    option, there the learning rate. Raises: for a rank above the weight's.
    """
    drawn = config.start != "given"
    kept: dict[str, Any] = {"train": False, "save": not drawn}
    pools, uses, r = {}, [], config.rank
    bind = LowRank(scale(config), config.dropout)
    for s in sites:
        fits("lora-sb", s, r)
        pools[f"{s.name}.A"] = Pool((r, s.inp), Orthonormal() if drawn else ZEROS, **kept)
        pools[f"{s.name}.B"] = Pool((s.out, r), Orthonormal() if drawn else ZEROS, **kept)
        pools[f"{s.name}.R"] = Pool((r, r), ZEROS)
        reads = {slot: Read(WHOLE, (f"{s.name}.{pool}",)) for slot, pool in (("A", "A"), ("B", "B"), ("M", "R"))}
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
