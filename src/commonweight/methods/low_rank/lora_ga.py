"""LoRA-GA: LoRA whose first step is the one that full fine-tuning would take, as far as rank 2 r can say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...core import CommonweightError, Plan, Site, config, option
from ...core.spectrum import svd
from ..registry import method
from ..shown import Statistics, begun
from ..widths import ranked
from .anchored import started


@config
class LoRAGA:
    rank: int = option(8, "rank r of every site's update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / sqrt(rank); none: 2 * sqrt(rank)", gt=0)
    gamma: float = option(16.0, "A and B begin smaller by its root", gt=0)
    direction: Literal["ArB2r", "A2rBr", "ArBr"] = option(
        "ArB2r", "which of the first 2 r singular vectors A has; ArBr: every other one"
    )
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: from the gradient of rows; random: as LoRA; given: what a start from rows becomes"
    )


def begin(config: LoRAGA, sites: Sequence[Site], seen: Statistics) -> tuple[LoRAGA, dict[str, Tensor]]:
    """G = U S V^T the mean gradient: A = c V_A^T, B = c U_B with c = d_out^(1/4) / sqrt(gamma)."""
    r, values = config.rank, {}
    at = {
        "ArB2r": (slice(r), slice(r, 2 * r)), "A2rBr": (slice(r, 2 * r), slice(r)),
        "ArBr": (slice(1, 2 * r, 2), slice(0, 2 * r, 2)),
    }[config.direction]  # fmt: skip
    for s in sites:
        if 2 * r > min(s.out, s.inp):
            raise CommonweightError(
                f"lora-ga: {s.name}: rank={r} wants {2 * r} singular vectors of a gradient ({s.out}, {s.inp}); lower "
                "rank, or exclude the site"
            )
        U, _, V = svd(seen[s.name])
        c = s.out**0.25 / math.sqrt(config.gamma)
        A, B = (c * V[at[0]]).contiguous(), (c * U[:, at[1]]).contiguous()
        values |= {f"{s.name}.A": A, f"{s.name}.B": B, f"{s.name}.A0": A.clone(), f"{s.name}.B0": B.clone()}
    return replace(config, start="given"), values


@method(
    "lora-ga",
    LoRAGA,
    paper="LoRA-GA: Low-Rank Adaptation with Gradient Approximation, arXiv 2407.05000",
    formula="sum over sites of r (d_in + d_out); the file holds the start too, twice as much",
    kinds=("linear", "expert"),
    depthwise=False,
    unfit=ranked(2),
    lr=5e-4,
    wants=lambda config: "gradient" if config.start == "rows" else "",
    begin=begin,
    ends=begun,
)
def plan(sites: Sequence[Site], config: LoRAGA) -> Plan:
    """W' = W + s (B A - B0 A0), s = alpha / sqrt(r): the start B0 A0 is taken away, so that a fresh tenant is the base.

    Source: arXiv 2407.05000, section 3, and github.com/Outsider565/LoRA-GA. Differs: the base, which others read too,
    keeps W, and the start lies in the file; an exact SVD. PEFT 0.21's LoRA-GA is another: see
    findings/peft_loraga_start_follows_the_loss.sh.
    """
    s = 2.0 if config.alpha is None else config.alpha / math.sqrt(config.rank)
    return started(sites, config.rank, s, config.start == "given")
