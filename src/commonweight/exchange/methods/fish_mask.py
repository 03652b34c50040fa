"""FISH mask: a few entries of the weights, the same for all clients, are trained and sent; their mean is exact."""

from __future__ import annotations

from typing import Any, Literal

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import method


@config
class FishMask:
    ratio: float = option(0.001, "share of the sites' entries that are trained and sent", gt=0, le=1)
    start: Literal["rows", "random"] = option(
        "rows", "rows: the entries of the largest Fisher information on rows of the first client, whose places are "
        "sent once to each; random: drawn from the seed, which nobody sends"
    )  # fmt: skip


@method(
    "fish-mask",
    FishMask,
    paper="Training Neural Networks with Fixed Sparse Masks, arXiv 2111.09839",
    id=146,
    exact=True,
    **{**AVERAGING, "formula": "4 p up, 4 p down; with start=rows a place of 4 and a value of 4 for each number, once"},
)
def adapter(config: FishMask) -> tuple[str, dict[str, Any]]:
    """w' = w + dw, dw zero but at the k places of the largest F = sum over rows of (d loss / d w)^2, over all sites
    together. theta <- sum_n w_n theta_n at these places: the update is linear in them, so the mean is exact.

    Source: arXiv 2111.09839, eq. (3) and its distributed training, where workers send the masked entries alone.
    Differs: one mask for the whole run, of the first client's rows; the paper's workers make it anew before each round,
    which sends every place again.
    """
    return "fish", {"ratio": config.ratio, "start": config.start}
