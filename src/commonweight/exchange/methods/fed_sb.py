"""Fed-SB: r x r numbers a site between frozen factors; their mean is exact for any number of clients."""

from __future__ import annotations

from typing import Any, Literal

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import method


@config
class FedSB:
    rank: int = option(8, "rank r: r * r numbers a site", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: the adapter's own", gt=0)
    factors: Literal["base", "gradient"] = option(
        "base", "A and B: of the base's singular vectors, which nobody sends; or of a gradient on rows of the first "
        "client, sent once to each"
    )  # fmt: skip


@method(
    "fed-sb",
    FedSB,
    paper="Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in (Private) Federated LoRA "
    "Fine-Tuning, arXiv 2502.15436",
    id=364,
    exact=True,
    **{**AVERAGING, "formula": "4 p up, 4 p down; with factors=gradient 4 r (d_in + d_out) a site more, once"},
)
def adapter(config: FedSB) -> tuple[str, dict[str, Any]]:
    """h = W x + s B R A x: only R (r, r) is trained and sent; B and A are frozen, the same everywhere.

    Source: arXiv 2502.15436, section 3, whose start is factors="gradient" (LoRA-SB). Differs: by default A and B are of
    the base's own singular vectors (as LoRA-XS), which every client makes by itself, and R starts at zero: the other
    start costs each client 4 r (d_in + d_out) bytes a site once.
    """
    more = {} if config.alpha is None else {"alpha": config.alpha}
    return "lora-xs" if config.factors == "base" else "lora-sb", {"rank": config.rank, **more}
