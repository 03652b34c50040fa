"""MoLORA: low-rank experts, all of which a token takes, each by its share of a softmax."""

from __future__ import annotations

from collections.abc import Sequence

from ...bind import Mixture
from ...core import Normal, Plan, Site, config, option
from ..registry import method
from .losses import largest, weighed
from .plans import mixture


@config
class MoLORA:
    rank: int = option(4, "rank of each expert", ge=1)
    experts: int = option(10, "experts at each site", ge=1)
    alpha: float = option(16.0, "numerator of the scale alpha / rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    balance: float = option(0.0, "weight of the load of experts in the loss, site by site", ge=0)
    small: float = option(0.0, "weight of the routers' z-loss, which keeps logits small", ge=0)


@method(
    "molora",
    MoLORA,
    paper="Pushing Mixture of Experts to the Limit: Extremely Parameter Efficient MoE for Instruction Tuning, "
    "arXiv 2309.05444",
    formula="sum over sites of E (r (d_in + d_out) + d_in)",
    kinds=("linear", "expert"),
    named=("router",),
    routing=lambda config: weighed(config.balance, config.small, largest(1), "site"),
    size=("rank", "experts"),
)
def plan(sites: Sequence[Site], config: MoLORA) -> Plan:
    """h = W x + (alpha / r) sum_e p_e B_e A_e x, p = softmax(R x) of each token; A and R N(0, 0.02), B zero.

    Shapes: A (E r, d_in), B (d_out, E r), R (E, d_in). Linear in: A and B, each alone. Cost: as LoRA of rank E r.
    Source: arXiv 2309.05444, section 3; github.com/for-ai/parameter-efficient-moe @e2683fe, src/molora.py and
    configs/molora.gin, whose constants these are; the two losses are off, as there. Differs: AdamW, where the official
    runs take Adafactor at 3e-4.
    """
    scale = config.alpha / config.rank
    small = lambda _: Normal(0.02)  # noqa: E731
    return mixture(
        sites, lambda n: Mixture(scale, dropout=config.dropout), [config.experts] * len(sites), config.rank,
        first=small, router=small,
    )  # fmt: skip
