"""RoAd: pairs of output dimensions are turned and stretched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import RotatePairs
from ...core import ONES, ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, option
from ..registry import method
from ..widths import divides


@config
class RoAd:
    variant: Literal["road_1", "road_2", "road_4"] = option(
        "road_1", "an angle and a size for each pair, for each dimension, or for each entry of a pair's 2 x 2 matrix"
    )
    group_size: int = option(
        64, "dimension j of a group is paired with j + group_size / 2; even, divides every d_out", ge=2
    )

    def check(self) -> str | None:
        return f"group_size={self.group_size} is odd; a group is made of pairs" if self.group_size % 2 else None


@method(
    "road",
    RoAd,
    paper="3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Batching and Composability, arXiv 2409.00119",
    formula="sum over sites of k d_out, k = 1, 2 or 4 by variant",
    unfit=divides("group_size", "out"),
    lr=5e-3,
    size=("variant",),
)
def plan(sites: Sequence[Site], config: RoAd) -> Plan:
    """y' = R (W x + b), R of 2 x 2 blocks alpha [[cos theta, -sin theta], [sin theta, cos theta]].

    Shapes: theta and alpha (k d_out / 2,) each. The start is theta = 0, alpha = 1. Linear in: alpha.
    Cost: 3 T d_out products a site, and no matrix product. Source: arXiv 2409.00119, eq. (4).
    Differs: pairs as PEFT lays them, halves of a group instead of neighbours, so that a row stays contiguous.
    Raises: when group_size does not divide a d_out.
    """
    pools, uses = {}, []
    for s in sites:
        if s.out % config.group_size:
            choose = [g for g in (128, 64, 32, 16, 8, 4, 2) if s.out % g == 0][:4]
            todo = f"choose group_size from {choose}, or exclude" if choose else "exclude"
            raise CommonweightError(
                f"road: {s.name}: output width {s.out} is not a multiple of "
                f"group_size={config.group_size}; {todo} the site"
            )
        size = int(config.variant[-1]) * s.out // 2
        for slot, init in (("theta", ZEROS), ("alpha", ONES)):
            pools[f"{s.name}.{slot}"] = Pool((size,), init)
        reads = {slot: Read(WHOLE, (f"{s.name}.{slot}",)) for slot in ("theta", "alpha")}
        uses.append(Use(s.name, RotatePairs(config.group_size), reads))
    return Plan(pools, tuple(uses))
