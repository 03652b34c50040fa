"""Approximated prompts: what tokens would take from prompts in an attention, worked out behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE
from ...core import ZEROS, Base, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, option, serial
from ..registry import method


@config
class APTPrompts:
    tokens: int = option(50, "prompts p of each attention", ge=1)
    rank: int = option(4, "rank k of the map by which tokens are compared with them", ge=1)


@serial
@dataclass(frozen=True)
class Approximated:
    """y' = e^s (y + max_j(a_j) a P) with a = relu(x (P + P W1^T W2^T)^T); the maximum is given no gradient.

    Shapes: P (p, d), W1 (k, d), W2 (d, k), s (1,); x and y (..., d). Linear in: nothing; a is in W2.
    Cost: 2 T p d products, and p k d for the map.
    """

    def output(self, x: Tensor, y: Tensor, base: Base, P: Tensor, W1: Tensor, W2: Tensor, s: Tensor) -> Tensor:
        a = torch.relu(x @ (P + P @ W1.mT @ W2.mT).mT)
        return s[..., None].exp() * (y + a.amax(-1, keepdim=True).detach() * (a @ P))

    def grouped(self, x: Tensor, y: Tensor, base: Base, P: Tensor, W1: Tensor, W2: Tensor, s: Tensor) -> Tensor:
        """`output` of n readers at once: x and y (n, T, d), every slot with a leading n."""
        return self.output(x, y, base, P, W1, W2, s)


@method(
    "apt-prompts",
    APTPrompts,
    paper="Approximated Prompt Tuning for Vision-Language Pre-trained Models, arXiv 2306.15706",
    formula="sum over attentions of p d + 2 k d + 1",
    kinds=("attention",),
    named=(),
    lr=1e-3,
    fresh="what is compared is not zero at the start, and small",
    size=("tokens", "rank"),
)
def plan(sites: Sequence[Site], config: APTPrompts) -> Plan:
    """y' = e^s (y + max_j(a_j) a P), a = relu(x (P + P W1^T W2^T)^T), in every attention: x what it is given, y what it
    gives behind its output projection, before that is added.

    Shapes: P (p, d), W1 (k, d), W2 (d, k), s (1,). Linear in: nothing. Cost: 2 T p d products an attention; it cannot
    be merged. No row gets longer, and nothing is kept in a cache. P begins with deviation 0.02, W1 with 1, W2 and s
    with 0.
    Source: arXiv 2306.15706; github.com/DoubtedSteam/APT @d66bbc4, `approximate_prompt`, whose formula this is: the
    paper's softmax, split in two, is a ReLU and a row's largest number there. Its p is 50 in ViLT and 200 in METER.
    Differs: in models whose norm stands before attention x is the normed state; the rate is ours (theirs: 5e-4).
    Raises: CommonweightError at an attention that gives another width than it is given.
    """
    pools, uses = {}, []
    for s in sites:
        if s.inp != s.out:
            raise CommonweightError(
                f"{s.name}: it is given {s.inp} numbers a token and gives {s.out}; approximated prompts are of one "
                "width, leave it out with sites"
            )
        slots = {
            "P": Pool((config.tokens, s.out), Normal(0.02)),
            "W1": Pool((config.rank, s.out), Normal(1.0)),
            "W2": Pool((s.out, config.rank), ZEROS),
            "s": Pool((1,), ZEROS),
        }
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        uses.append(Use(s.name, Approximated(), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
