"""Fed-SB: r x r numbers a site between frozen factors; their mean is exact for any number of clients."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import method


@config
class FedSB:
    rank: int = option(8, "rank r: r * r numbers a site", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)


@method(
    "fed-sb",
    FedSB,
    paper="Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in (Private) Federated LoRA "
    "Fine-Tuning, arXiv 2502.15436",
    id=364,
    exact=True,
    **AVERAGING,
)
def adapter(config: FedSB) -> tuple[str, dict[str, Any]]:
    """h = W x + s B R A x: only R (r, r) is trained and sent; B and A are frozen, the same everywhere.

    Source: arXiv 2502.15436, section 3. Differs: A and B are of the base's own singular vectors (as LoRA-XS), which
    every client makes by itself, and R starts at zero.
    """
    more = {} if config.alpha is None else {"alpha": config.alpha}
    return "lora-xs", {"rank": config.rank, **more}
