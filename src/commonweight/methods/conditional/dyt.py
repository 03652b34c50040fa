"""DyT: a gate for each token before the feed-forward part, and an adapter beside it that all tokens have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import TokenSelect
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method
from ..said import Said


@config
class DyT:
    size: int = option(16, "width r of the adapter", ge=1)
    scale: float = option(1.0, "factor s on what the adapter adds", gt=0)
    keep: float = option(0.5, "share of the tokens that the feed-forward parts are to be computed for", gt=0, le=1)
    weight: float = option(2.0, "factor on the squared distance of the share from it, in the loss", ge=0)
    tau: float = option(5.0, "temperature of the gates' gradient", gt=0)
    first: bool = option(
        False, "whether the first token of a row, padding aside, is always kept, as an image's class token is"
    )
    complete: bool = option(
        False,
        "whether a step has a second pass in which no token skips, with a loss of its own, which teaches the first",
    )


def rate(config: DyT, said: Mapping[str, Said]) -> Tensor:
    """weight (share - keep)^2, the share of gates over all parts and tokens, padding left out."""
    kept = torch.stack([(s.logits[:, 0] * s.real).sum() for s in said.values()]).sum()
    return config.weight * (kept / sum(s.real.sum() for s in said.values()) - config.keep).square()


@method(
    "dyt",
    DyT,
    paper="Dynamic Tuning Towards Parameter and Inference Efficiency for ViT Adaptation, arXiv 2403.11808",
    formula="sum over feed-forward parts of r (d_in + d_out) + r + d_out + d_in + 1",
    kinds=("ffn",),
    named=(),
    lr=1e-3,
    fresh="its gates begin near one half, so that about half of the tokens skip the feed-forward parts",
    size=("size",),
    routing=lambda config: partial(rate, config) if config.weight else None,
    complete=lambda config: config.complete,
)
def plan(sites: Sequence[Site], config: DyT) -> Plan:
    """y' = g y + s (W_up relu(W_down x + b_down) + b_up) of a feed-forward part; g = 1 where v x + c > 0, else 0.

    In training g is drawn, with a straight-through gradient, and weight (mean g - keep)^2 is added to the loss: the
    mean over parts and tokens, padding left out. At inference a part is computed
    for the tokens of g = 1 alone. v begins as N(0, 0.02^2), W_up, c and the biases as zero.
    Shapes: v (d_in,), c (1,), W_down (r, d_in), W_up (d_out, r). Cost: T r (d_in + d_out) products a part.
    Source: arXiv 2403.11808; github.com/NUS-HPC-AI-Lab/Dynamic-Tuning @d1744f0, models/dynamic_adapter.py, losses.py.
    complete: the paper's loss, with a second pass in which all gates are open; a step costs twice as much, so that it
    is an option (`adapt.Complete`; of classifications, and of one tenant a run).
    Differs: in models whose norm stands before a part, x is the normed state; no dropout in the adapter; a first token
    that is always kept counts in the mean.
    """
    pools, uses, r = {}, [], config.size
    for s in sites:
        slots = {
            "select": Pool((s.inp,), Normal(0.02)),
            "select_bias": Pool((1,), ZEROS),
            "down": Pool((r, s.inp), kaiming(s.inp)),
            "down_bias": Pool((r,), ZEROS),
            "up": Pool((s.out, r), ZEROS),
            "up_bias": Pool((s.out,), ZEROS),
        }
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        bind = TokenSelect(config.scale, config.tau, config.first)
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
