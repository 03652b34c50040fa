"""DynMoLE: low-rank experts, of which a token takes as many as its router is sure of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from ...bind import Mixture
from ...bind.mixture import Dynamic
from ...core import Plan, Site, config, option
from ..choices import more_than
from ..registry import method
from ..said import RouterLoss, Said
from .losses import entropy, joined, mean
from .plans import mixture


@config
class DynMoLE:
    rank: int = option(8, "rank of each expert", ge=1)
    experts: int = option(6, "experts at each site", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    top_p: float = option(0.75, "the largest gates are kept while their sum is at most this", ge=0, le=1)
    active: int = option(2, "experts that a token always takes", ge=1)
    threshold: float = option(0.9, "a token takes all experts above this share of the largest entropy", ge=0)
    index: float = option(1.1, "index of the Tsallis entropy; 1 is Shannon's", gt=0)
    balance: float = option(1e-3, "weight of the load of experts in the loss", ge=0)
    entropy: float = option(1e-2, "weight of the routers' entropy in the loss", ge=0)

    def check(self) -> str | None:
        return more_than("active", self.active, "experts", self.experts)

    @property
    def gate(self) -> Dynamic:
        return Dynamic(self.top_p, self.active, self.threshold, self.index)


def _routing(config: DynMoLE) -> RouterLoss | None:
    return partial(_loss, config) if config.balance or config.entropy else None


def _loss(config: DynMoLE, said: Mapping[str, Said]) -> Tensor:
    """Of all sites' routers as of one: each has as many experts."""
    whole = joined(said.values())
    p = whole.logits.softmax(-1)
    load = mean(config.gate(whole.logits), whole.real) * mean(p, whole.real)
    return config.entropy * entropy(whole, config.index) + config.balance * p.shape[-1] * load.sum()


@method(
    "dynmole",
    DynMoLE,
    paper="DynMoLE: Boosting Mixture of LoRA Experts Fine-Tuning with a Hybrid Routing Mechanism, arXiv 2504.00661",
    formula="sum over sites of E (r (d_in + d_out) + d_in)",
    kinds=("linear",),
    named=("expert", "router"),
    roles=("gate", "up", "down"),
    routing=_routing,
    size=("rank", "experts"),
)
def plan(sites: Sequence[Site], config: DynMoLE) -> Plan:
    """h = W x + (alpha / r) sum_e g_e B_e A_e x; p = softmax(R x), g = p for the experts kept, else 0: see `Dynamic`.

    Shapes: A (E r, d_in), B (d_out, E r), R (E, d_in); A and R uniform, B zero at the start. To the loss are added
    `entropy` times the mean normalised entropy of p and `balance` E sum_i mean(g_i) mean(p_i), over all sites' routers.
    Linear in: A and B, each alone. Source: github.com/mikecovlee/DynMoLE @9354b27, moe_peft/adapters/dynmole and
    templates/dynmole.json, whose constants these are (rank 24 there). Differs: padding counts in neither term; the
    commit calls its entropy by an argument that it does not have, and does not run as it stands.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    bind = Mixture(alpha / config.rank, dropout=config.dropout, gate=config.gate)
    return mixture(sites, lambda n: bind, [config.experts] * len(sites), config.rank)
