"""HydraLoRA: one A, and several B of which a token takes each by its share of a softmax."""

from __future__ import annotations

from collections.abc import Sequence

from ...bind import Mixture
from ...core import Plan, Site, config, option
from ..registry import method
from .plans import mixture


@config
class HydraLoRA:
    rank: int = option(8, "rank of the one A, and of each B", ge=1)
    experts: int = option(3, "B at each site", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


@method(
    "hydralora",
    HydraLoRA,
    paper="HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning, arXiv 2404.19245",
    formula="sum over sites of r d_in + E (r d_out + d_in)",
    kinds=("linear", "expert"),
    named=("router",),
    size=("rank", "experts"),
)
def plan(sites: Sequence[Site], config: HydraLoRA) -> Plan:
    """h = W x + (alpha / r) sum_e p_e B_e A x, p = softmax(R x) of each token; A and R uniform, B zero at the start.

    Shapes: A (r, d_in), B (d_out, E r), R (E, d_in). Linear in: A and B, each alone. Source: arXiv 2404.19245, eq. (3)
    to (5). Differs: the number of experts is an option; the paper finds it by clustering the corpus. No term that
    balances the experts' load is added to the loss; the router's start is that of a linear layer.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    return mixture(
        sites, lambda n: Mixture(alpha / config.rank, dropout=config.dropout), [config.experts] * len(sites),
        config.rank, shared=True,
    )  # fmt: skip
