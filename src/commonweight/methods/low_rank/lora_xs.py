"""LoRA-XS: r x r numbers per layer between frozen factors of the layer's own weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ...address import WHOLE
from ...bind import LowRank
from ...core import ZEROS, BaseWeight, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import method
from ..widths import ranked


@config
class LoRAXS:
    rank: int = option(16, "rank r: r * r numbers per site", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    factors: Literal["base", "common"] = option(
        "base", "A and B: frozen, of the base's SVD; or trained from there, once for the tenants of a common"
    )
    std: float = option(0.0, "standard deviation of R at the start; the paper draws 1e-5", ge=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


def fits(method: str, site: Site, rank: int) -> None:
    """Raises where a rank is more than the weight has."""
    if rank > min(site.out, site.inp):
        raise CommonweightError(
            f"{method}: {site.name}: rank {rank} is more than its weight ({site.out}, {site.inp}) has; "
            f"choose rank <= {min(site.out, site.inp)}, or exclude the site"
        )


@method(
    "lora-xs",
    LoRAXS,
    paper="LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters, arXiv 2405.17604",
    formula="r * r per site, whatever its widths",
    depthwise=False,
    unfit=ranked(),
    lr=2e-3,
    common="with factors=common, A and B; its own: R",
)
def plan(sites: Sequence[Site], config: LoRAXS) -> Plan:
    """h = W x + (alpha / r) B R A x, only R trained; W = U S V^T, A = S_r V_r^T and B = U_r frozen.

    Shapes: A (r, d_in), R (r, r), B (d_out, r). Linear in: R. Cost: as LoRA and T r^2; one SVD per site at the start,
    nothing but R in a file. Source: arXiv 2405.17604, section 3; S stands on the input side as in the official code,
    which takes the SVD of the transposed weight. Differs: R starts at zero, so that a fresh tenant is the base; at
    std=1e-5, the paper's, it is so up to 1e-5 S_r; the SVD is of W in bfloat16, so that a file fits copies of the
    base in both precisions; factors="common" is ours. Raises: for a rank above the weight's.
    """
    pools, uses = {}, []
    bind = LowRank((2.0 * config.rank if config.alpha is None else config.alpha) / config.rank, config.dropout)
    kept: dict[str, Any] = {"scope": "shared"} if config.factors == "common" else {"train": False, "save": False}
    for s in sites:
        r = config.rank
        fits("lora-xs", s, r)
        for slot, shape, part, power in (("A", (r, s.inp), "V", 1.0), ("B", (s.out, r), "U", 0.0)):
            init = BaseWeight(s.name, part, power, rounded=True)
            pools[f"{s.name}.{slot}"] = Pool(shape, init, **kept)
        pools[f"{s.name}.R"] = Pool((r, r), Normal(config.std) if config.std else ZEROS)
        reads = {slot: Read(WHOLE, (f"{s.name}.{pool}",)) for slot, pool in (("A", "A"), ("B", "B"), ("M", "R"))}
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
