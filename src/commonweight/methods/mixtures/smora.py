"""SMoRA: every rank of a low-rank update is an expert, and a token takes some of them."""

from __future__ import annotations

from collections.abc import Sequence

from ...bind import Mixture
from ...core import Plan, Site, config, option
from ..choices import more_than
from ..registry import method
from .plans import mixture


@config
class SMoRA:
    rank: int = option(64, "ranks at each site, all experts together", ge=1)
    active: int = option(8, "ranks that a token takes", ge=1)
    partition: int = option(1, "ranks that are chosen together", ge=1)
    alpha: float = option(16.0, "scale of the update; the number of active ranks cancels", gt=0)
    dropout: float = option(0.0, "dropout on the input of A and of the router, in training", ge=0, le=0.95)

    def check(self) -> str | None:
        if self.rank % self.partition or self.active % self.partition:
            return f"rank {self.rank} and active {self.active} are not whole parts of {self.partition}"
        return more_than("active", self.active, "ranks", self.rank)


@method(
    "smora",
    SMoRA,
    paper="Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for Multi-Task Learning, "
    "arXiv 2501.15103",
    formula="sum over sites of r (d_in + d_out) + r d_in / p",
    kinds=("linear", "expert"),
    named=("router",),
)
def plan(sites: Sequence[Site], config: SMoRA) -> Plan:
    """h = W x + (alpha / k) B diag(g) A x; q = sigmoid(R x), g_i = k q_i / (sum of the k largest) for these, else 0.

    Shapes: A (r, d_in), B (d_out, r), R (r / p, d_in): each q stands for p ranks. Linear in: A and B, each alone.
    Source: arXiv 2501.15103; github.com/StyxXuan/smora @7e7ada1, the dense branch beside its kernels. Differs: the bias
    of the choice, which the official code moves by 1e-5 a step against the load of each rank, stays zero; the paper's
    text was not read. Products are done for all ranks, and multiplied by 0 for those that a token does not take.
    """
    experts, k = config.rank // config.partition, config.active // config.partition
    # k of the official numerator is that of ranks; over p ranks each, sum g = k again
    scale = config.alpha / config.partition
    return mixture(
        sites, lambda n: Mixture(scale, "sigmoid", k, config.dropout, dropped=True), [experts] * len(sites),
        config.partition,
    )  # fmt: skip
