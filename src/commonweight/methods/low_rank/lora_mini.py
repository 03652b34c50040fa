"""LoRA-Mini: of four factors of an update, the outer two are random and frozen, the inner two trained."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE, Combine
from ...bind import LowRank
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method


@config
class LoRAMini:
    rank: int = option(8, "rank r of the update", ge=1)
    width: int = option(32, "width a of the outer factors", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input, in training", ge=0, le=0.95)

    def check(self) -> str | None:
        return None if self.width >= self.rank else f"width={self.width} is less than rank={self.rank}"


@method(
    "lora-mini",
    LoRAMini,
    paper="LoRA-Mini: Adaptation Matrices Decomposition and Selective Training, arXiv 2411.15804",
    formula="2 r a per site, whatever its widths",
    lr=5e-3,
    size=("rank", "width"),
)
def plan(sites: Sequence[Site], config: LoRAMini) -> Plan:
    """h = W x + (alpha / r) B_out B_in A_in A_out x; the outer two are frozen, from the seed.

    Shapes: A_out (a, d_in), A_in (r, a), B_in (a, r), B_out (d_out, a); the pools of the inner two are A_in and B_in^T.
    Linear in: A_in and B_in, each alone. Cost: as a LoRA of rank a. Source: arXiv 2411.15804, abstract and the
    reviews' letters alone could be read. Ours: both widths a, A_in as a LoRA's A, B_in zero, the outer factors uniform
    as A and normal with variance 1 / a, alpha / r as the scale.
    """
    pools, uses, a, r = {}, [], config.width, config.rank
    bind = LowRank((2.0 * r if config.alpha is None else config.alpha) / r, config.dropout)
    for s in sites:
        n = s.name
        pools[f"{n}.A_out"] = Pool((a, s.inp), kaiming(s.inp), train=False, save=False)
        pools[f"{n}.B_out"] = Pool((s.out, a), Normal(a**-0.5), train=False, save=False)
        pools[f"{n}.B_in"], pools[f"{n}.A_in"] = Pool((r, a), ZEROS), Pool((r, a), kaiming(a))
        reads = {"A": Read(WHOLE, (f"{n}.A_out",)), "B": Read(WHOLE, (f"{n}.B_out",))}
        uses.append(Use(n, bind, {**reads, "M": Read(Combine(True), (f"{n}.B_in", f"{n}.A_in"))}))
    return Plan(pools, tuple(uses))
