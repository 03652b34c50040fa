"""pFedPara: half of FedPara travels, the other half makes the model a client's own."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import method


@config
class PFedParaExchange:
    rank: int = option(4, "rank r of both factors; the update's is at most r * (r + 1)", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)


@method(
    "pfedpara",
    PFedParaExchange,
    paper="FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, arXiv 2108.06098",
    id=398,
    **{**AVERAGING, "each": "W2"},
)
def adapter(config: PFedParaExchange) -> tuple[str, dict[str, Any]]:
    """W' = W + (alpha / r) W1 o (W2 + 1): A1 and B1 travel, A2 and B2 stay.

    Source: arXiv 2108.06098, section 2.3. A client without rounds has W2 = 0: the global W1 alone.
    """
    return "pfedpara", {"rank": config.rank} | ({} if config.alpha is None else {"alpha": config.alpha})
