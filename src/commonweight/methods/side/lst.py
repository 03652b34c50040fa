"""LST: a narrow transformer beside the model, which climbs on what each of its blocks gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...bind import Ladder, narrow
from ...core import ONES, ZEROS, CommonweightError, Plan, Pool, Site, config, kaiming, option
from ..registry import method
from ..shown import Statistics
from .cut import cut
from .plans import beside, states


@config
class LST:
    reduction: int = option(8, "how many times narrower than the model the ladder is", ge=1)
    heads: int = option(4, "heads of its attention; its width is made a multiple of them", ge=1)
    expansion: float = option(4.0, "how many times wider its feed-forward layers are than it", gt=0)
    drop: tuple[int, ...] = option((), "blocks, counted from 0, that have no rung")
    start: Literal["random", "weights", "rows", "given"] = option(
        "random",
        "its blocks at the start. random; weights: the model's own, cut down to what is largest; rows: to what matters "
        "most to rows, as in the paper; given: what these become",
    )

    def widths(self, d: int) -> tuple[int, int]:
        """(of the ladder, of its feed-forward layers)."""
        c = narrow(d, self.reduction, self.heads)
        return c, max(1, round(self.expansion * c))


def begin(config: LST, sites: Sequence[Site], seen: Statistics) -> tuple[LST, dict[str, Tensor]]:
    """Its blocks as cuts of the model's; all of them are in the chain, also those without a rung."""
    values, asked = {}, "" if config.start == "rows" else "="
    for s in (s for s in sites if s.role in ("whole", "")):
        c, f = config.widths(s.out)
        blocks = cut(s.name, states(s) - 1, seen, asked, c, f)
        some = [b for i, b in enumerate(blocks) if i not in config.drop]
        values[f"{s.name}.qkv"] = torch.stack([torch.cat([b[r] for r in ("query", "key", "value")]) for b in some])
        for slot, role in (("O", "attn_out"), ("U", "up"), ("D", "down")):
            values[f"{s.name}.{slot}"] = torch.stack([b[role] for b in some])
    return replace(config, start="given"), values


@method(
    "lst",
    LST,
    paper="LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning, arXiv 2206.06522",
    formula="for each stack, k kept of its blocks: (k + 1) (c d + c) + k (1 + 2 c + 4 c^2 + 2 c f) + c + c d + d",
    kinds=("trunk",),
    named=(),
    roles=("whole",),
    lr=3e-3,
    fresh="what the ladder gives takes the place of what the last block gives",
    size=("-reduction",),
    wants=lambda config: {"rows": "blocks", "weights": "projections"}.get(config.start, ""),
    begin=begin,
)
def plan(sites: Sequence[Site], config: LST) -> Plan:
    """h_0 = W_0 x_0 + b_0; h := block_i(mu_i h + (1 - mu_i) (W_i x_i + b_i)), mu_i = sigmoid(alpha_i / 0.1), alpha = 0;
    y' = W_up N(h) + b_up.

    x_0 what the first block is given, x_i what block i gives, c = d / reduction the ladder's width, f of its
    feed-forward layers. No gradient goes through the model, and nothing is kept of it but what its blocks give. The
    ladder attends over whole rows: with a cache generation is refused. Weights begin as torch's, biases as zero.
    Source: arXiv 2206.06522; github.com/ylsung/Ladder-Side-Tuning @1798e82, modeling_side_t5.py.
    start="rows": the blocks begin as the model's, cut down by squared gradients (`cut.cut`), which is the paper's way;
    "weights" by the weights themselves, as its code does without rows. Norms begin as ones all the same.
    Differs: its blocks are of one make for all models (norms as T5's, GELU, one feed-forward map in, no positions of
    their own), and begin at random unless `start` says else; no dropout; what it gives goes through the
    model's last norm, where that lies behind the blocks; a decoder's ladder does not read the encoder's. The code for
    BERT and T5's with residuals takes absolute values of summed logarithms for the product, by which rows that matter
    least are kept wherever importances are below 1; ours is the product, as in its code for T5.
    Raises: CommonweightError for a block to drop that is not there, and for a start from blocks whose query, key and
    value are one layer, or without a feed-forward part.
    """

    def kept(s: Site) -> tuple[int, ...]:
        n = states(s) - 1
        if wrong := [i for i in config.drop if not 0 <= i < n]:
            raise CommonweightError(f"lst: drop names block {wrong[0]}, and {s.name} has {n}, counted from 0")
        return tuple(i for i in range(n) if i not in config.drop)

    def slots(s: Site) -> dict[str, Pool]:
        k, d, (c, f) = len(kept(s)), s.out, config.widths(s.out)
        return {
            "W": Pool((k + 1, c, d), kaiming(d)),
            "b": Pool((k + 1, c), ZEROS),
            "alpha": Pool((k,), ZEROS),
            "norms": Pool((k, 2, c), ONES),
            "qkv": Pool((k, 3 * c, c), kaiming(c)),
            "O": Pool((k, c, c), kaiming(c)),
            "U": Pool((k, f, c), kaiming(c)),
            "D": Pool((k, c, f), kaiming(f)),
            "norm": Pool((c,), ONES),
            "W_up": Pool((d, c), kaiming(c)),
            "b_up": Pool((d,), ZEROS),
        }

    return beside("lst", sites, "whole", slots, lambda s: Ladder(config.heads, kept(s)))
