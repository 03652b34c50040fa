"""FedPara: an update of rank r^2 for the bytes of rank 2 r, as an entrywise product of two low ranks."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..averaging import AVERAGING
from ..factors import mean_pools
from ..registry import method


@config
class FedPara:
    rank: int = option(4, "rank r of both factors; the update's is at most r * r", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)


@method(
    "fedpara",
    FedPara,
    paper="FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, arXiv 2108.06098",
    id=398,
    **{**AVERAGING, "gather": mean_pools},
)
def adapter(config: FedPara) -> tuple[str, dict[str, Any]]:
    """W' = W + (alpha / r) (B1 A1) o (B2 A2); all four factors are averaged, whose error is told.

    Source: arXiv 2108.06098, section 2. Differs: an update of a pretrained weight (LoHa), not the weight itself, so
    that its first values are LoHa's; no Jacobian correction, as in the author's notebook.
    """
    return "loha", {"rank": config.rank} | ({} if config.alpha is None else {"alpha": config.alpha})
