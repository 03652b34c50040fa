"""MEO: the experts that a row asks for are merged into one before its tokens are multiplied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import OneExpert
from ...bind.one_expert import top
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..choices import more_than
from ..registry import method
from ..said import RouterLoss, Said


@config
class MEO:
    rank: int = option(8, "rank of each expert", ge=1)
    experts: int = option(4, "experts at each site", ge=1)
    active: int = option(2, "experts that a row takes", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    noisy: bool = option(True, "noise on what decides in training, of a size that is learnt")
    balance: float = option(1e-2, "weight of the uneven load of experts in the loss", ge=0)

    def check(self) -> str | None:
        return more_than("active", self.active, "experts", self.experts)


def uneven(t: Tensor) -> Tensor:
    """Squared coefficient of variation of t (E,), its variance unbiased; 0 of one number."""
    return t.var() / (t.mean().square() + 1e-10) if len(t) > 1 else t.new_zeros(())


def load(clean: Tensor, z: Tensor, size: Tensor, k: int) -> Tensor:
    """How probably each expert is among the k < E largest if its own noise is drawn anew: (rows, E), each as such."""
    best = z.topk(k + 1, -1).values
    bar = torch.where(z > best[:, k:], best[:, k:], best[:, k - 1 : k])  # the k-th largest of the others
    return 0.5 * (1 + torch.erf((clean - bar) / size / math.sqrt(2)))


def _routing(config: MEO) -> RouterLoss | None:
    return partial(_loss, config) if config.balance else None


def _loss(config: MEO, said: Mapping[str, Said]) -> Tensor:
    """Summed over the sites: balance (uneven(gates) + uneven(load)), both sums over the rows."""
    parts = []
    for logits, real in said.values():
        noisy = config.noisy and logits.shape[-1] == 3 * config.experts
        clean, z, size = logits.chunk(3, -1) if noisy else [logits] * 3
        g, at = top(z, config.active)
        gates = torch.zeros_like(z).scatter(-1, at, g)
        smooth = noisy and config.active < config.experts
        loads = load(clean, z, size, config.active) if smooth else (gates > 0).to(gates.dtype)
        row = real.to(gates.dtype)[:, None]
        parts.append(uneven((gates * row).sum(0)) + uneven((loads * row).sum(0)))
    return config.balance * torch.stack(parts).sum()


@method(
    "meo",
    MEO,
    paper="Merging Experts into One: Improving Computational Efficiency of Mixture of Experts, EMNLP 2023, "
    "arXiv 2310.09832",
    formula="sum over sites of E (r (d_in + d_out) + 2 d_in)",
    kinds=("linear",),
    named=(),
    whole=True,
    routing=_routing,
    size=("rank", "experts"),
)
def plan(sites: Sequence[Site], config: MEO) -> Plan:
    """h = (sum_e g_e W_e) x, W_e = W + (alpha / r) B_e A_e; g of a row: softmax over the k largest of R m + noise, with
    m the mean of x over the row's tokens, padding aside. Since sum g = 1, one matrix gives what k outputs sum to.

    Shapes: A (E r, d_in), B (d_out, E r), R and N (E, d_in). R, N and B are zero at the start, A uniform. In training
    the noise is normal times softplus(N m) + 0.01. To the loss is added `balance` times the squared coefficients of
    variation of the experts' gates and of their smooth load over the rows, summed over the sites. Linear in: A and B,
    each alone. Of encoders alone: a row's mean would tell a token of a decoder what comes after it, and differ with a
    cache. An encoder-decoder has it in its encoder.
    Source: github.com/Shwai-He/MEO @d83f2cf, transformers/models/layers.py, classes MEO and MoE, level "sequence".
    Differs: experts are low-rank changes of the frozen matrix (theirs are full matrices, with biases); the mean leaves
    padding out. Left out: the level of tasks, and TokenAtt, a small network before the gate. Rank, experts and active
    are ours. Raises: CommonweightError in causal blocks.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    bind, n, pools, uses = OneExpert(alpha / config.rank, config.active), config.experts, {}, []
    for s in sites:
        mine = {
            "A": Pool((n * config.rank, s.inp), kaiming(s.inp)),
            "B": Pool((s.out, n * config.rank), ZEROS),
            "router": Pool((n, s.inp), ZEROS),
            **({"noise": Pool((n, s.inp), ZEROS)} if config.noisy else {}),
        }
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
