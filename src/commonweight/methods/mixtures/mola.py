"""MoLA: low-rank experts, more of them in the upper layers; a token takes two."""

from __future__ import annotations

from collections.abc import Sequence

from ...bind import Mixture
from ...core import Plan, Site, config, option
from ...core.names import by_layer
from ..choices import more_than
from ..registry import method
from .losses import largest, weighed
from .plans import mixture


@config
class MoLA:
    rank: int = option(8, "rank of each expert", ge=1)
    experts: tuple[int, ...] = option((2, 4, 6, 8), "experts at a site, from the lowest layers to the highest")
    active: int = option(2, "experts that a token takes; in layers with fewer, all of them", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    balance: float = option(0.0, "weight of the load of experts in the loss; the official flag's is 1e-3", ge=0)

    def check(self) -> str | None:
        if not self.experts or min(self.experts) < 1:
            return f"experts {self.experts}: give one number or several, each 1 or more"
        return more_than("active", self.active, "experts of any layer", max(self.experts))


@method(
    "mola",
    MoLA,
    paper="Higher Layers Need More LoRA Experts, arXiv 2402.08562",
    formula="sum over sites of E (r (d_in + d_out) + d_in), E by layer",
    kinds=("linear", "expert"),
    named=("router",),
    routing=lambda config: weighed(config.balance, 0.0, largest(config.active), "layer"),
)
def plan(sites: Sequence[Site], config: MoLA) -> Plan:
    """h = W x + (alpha / r) sum_e g_e B_e A_e x; p = softmax(R x), g the k largest over their sum, else 0.

    Shapes: A (E r, d_in), B (d_out, E r), R (E, d_in); A and R uniform, B zero at the start. The layers are cut into as
    many runs as `experts` has numbers; sites outside of layers belong to the first. Linear in: A and B, each alone.
    Source: arXiv 2402.08562; github.com/GCYZSL/MoLA @01785c8. `balance` times E sum_i f_i P_i of each layer, the
    routers of its projections as one, is added to the loss: the official script has it, switched off. Differs:
    padding counts for nothing in it. Products are done for all experts.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    layers = by_layer([s.name for s in sites])
    number = {n: i * len(config.experts) // len(layers) for i, names in enumerate(layers) for n in names}
    experts = [config.experts[number[s.name]] for s in sites]
    return mixture(
        sites, lambda n: Mixture(alpha / config.rank, k=min(config.active, n), dropout=config.dropout), experts,
        config.rank,
    )  # fmt: skip
