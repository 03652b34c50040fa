"""LoRA: a private low-rank update for every site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...address import WHOLE
from ...bind import Activated, BiasShift, LowRank
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, fits, kaiming, option
from ..registry import method


@config
class LoRA:
    rank: int = option(8, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale; none: 2 * rank", gt=0)
    rslora: bool = option(False, "scale alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732, eq. 6)")
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    ranks: tuple[tuple[str, int], ...] = option(
        (), "(pattern, rank) pairs: other ranks for some sites, first match wins", globs=True
    )
    alphas: tuple[tuple[str, float], ...] = option(
        (), "(pattern, alpha) pairs: other alphas for some sites", globs=True
    )
    bias: bool = option(False, "also a shift of the bias, at sites that have one")
    invocation: tuple[int, ...] = option(
        (), "token ids from whose last occurrence in a row on it acts (aLoRA, arXiv 2504.12397); none: everywhere"
    )

    def check(self) -> str | None:
        if self.invocation and self.bias:
            return "invocation and bias: a bias acts on all tokens; leave one of the two out"
        if any(t < 0 for t in self.invocation):
            return f"invocation is {list(self.invocation)}; token ids are 0 or more"
        return wrong_pairs(ranks=self.ranks, alphas=self.alphas)


def wrong_pairs(**options: Sequence[tuple[str, float]]) -> str | None:
    """What is wrong with (pattern, number) pairs: each number must be above 0."""
    found = [(name, p, v) for name, pairs in options.items() for p, v in pairs if v <= 0]
    return f"{found[0][0]} gives {found[0][1]!r} the value {found[0][2]}; it must be > 0" if found else None


def pick(pairs: Sequence[tuple[str, float]], name: str, default: float) -> float:
    """The number of the first pattern that fits the name, as `sites=` takes it."""
    return next((v for p, v in pairs if fits(name, p)), default)


def rank_and_scale(config: Any, site: str) -> tuple[int, float]:
    """A site's r, and alpha / r or alpha / sqrt(r)."""
    r = int(pick(config.ranks, site, config.rank))
    alpha = pick(config.alphas, site, 2.0 * r if config.alpha is None else config.alpha)
    return r, alpha / (math.sqrt(r) if config.rslora else r)


@method(
    "lora",
    LoRA,
    paper="LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685",
    formula="sum over sites of r (d_in + d_out); with bias, d_out more where there is one",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: LoRA) -> Plan:
    """h = W0 x + (alpha / r) B A x, A uniform and B zero at the start; with bias, + b, zero at the start.

    Linear in: A, B and b, each alone. Source: arXiv 2106.09685, eq. (3). Differs: A uniform as in the official code.
    With `invocation` the tokens before it are the base's, so that a cache of them is, too: `bind.Activated`.
    Raises: CommonweightError for an invocation at sites that have no tokens in a row.
    """
    if config.invocation and (other := next((s for s in sites if s.kind != "linear"), None)):
        linear = sorted({f"*.{s.name.rpartition('.')[2]}" for s in sites if s.kind == "linear"})
        raise CommonweightError(
            f"{other.name}: an activated LoRA (invocation) acts on tokens of linear layers, and this is of kind "
            f"{other.kind}; " + (f"take the others: sites={'|'.join(linear)!r}" if linear else "choose linear layers")
        )
    pools, uses = {}, []
    for s in sites:
        r, scale = rank_and_scale(config, s.name)
        pools[f"{s.name}.A"] = Pool((r, s.inp), kaiming(s.inp))
        pools[f"{s.name}.B"] = Pool((s.out, r), ZEROS)
        low = LowRank(scale, config.dropout)
        bind = Activated(low, config.invocation) if config.invocation else low
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "AB"}))
        if config.bias and s.bias:
            pools[f"{s.name}.b"] = Pool((s.out,), ZEROS)
            uses.append(Use(s.name, BiasShift(), {"db": Read(WHOLE, (f"{s.name}.b",))}))
    return Plan(pools, tuple(uses))
