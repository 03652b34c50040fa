"""READ: a small recurrent network that runs over the depth of the model, beside it."""

from __future__ import annotations

from collections.abc import Sequence

from ...bind import OverDepth
from ...core import ZEROS, Plan, Pool, Site, config, kaiming, option
from ..registry import method
from .plans import beside


@config
class READ:
    size: int = option(32, "width r of the recurrent state", ge=1)


@method(
    "read",
    READ,
    paper="READ: Recurrent Adaptation of Large Transformers, arXiv 2305.15348",
    formula="for each stack of blocks 2 r d + r^2 + r, whatever its depth",
    kinds=("trunk",),
    named=(),
    roles=("whole",),
    lr=2e-3,
    size=("size",),
)
def plan(sites: Sequence[Site], config: READ) -> Plan:
    """y' = y + W_out s_L; s_l = tanh(W_s s_{l-1} + W_in x_l + b), s_0 = 0: x_l what block l gives, y the last of them.

    No gradient goes through the blocks, and nothing is kept of them but what they give. Token by token. W_in and W_s
    begin uniform, W_out and b as zero. Shapes: W_in (r, d), W_s (r, r), W_out (d, r). Linear in: W_out.
    Source: arXiv 2305.15348, of which the abstract and summaries could be read: one cell for all layers, a recurrence
    over depth, a correction that is added to the last state. Ours: an Elman cell, W_in in place of the network that
    makes its input, the width, the start; the decoder's cell reads nothing of the encoder.
    """

    def slots(s: Site) -> dict[str, Pool]:
        r, d = config.size, s.out
        return {
            "W_in": Pool((r, d), kaiming(d)),
            "W_s": Pool((r, r), kaiming(r)),
            "b": Pool((r,), ZEROS),
            "W_out": Pool((d, r), ZEROS),
        }

    return beside("read", sites, "whole", slots, lambda s: OverDepth())
