"""SHERL: what the earlier blocks give is joined by what they do not say twice, and goes through the last block."""

from __future__ import annotations

from collections.abc import Sequence

from ...bind import Guidance
from ...core import ONES, ZEROS, Plan, Pool, Site, config, kaiming, option
from ..registry import method
from .plans import beside, states


@config
class SHERL:
    size: int | None = option(
        None,
        "width c of the states as they are compared; none: d / 2. A normed state of one number is zero, and one of "
        "two is 1 and -1, or the other way round: nothing is learned of it",
        ge=3,
    )


@method(
    "sherl",
    SHERL,
    paper="SHERL: Synthesizing High Accuracy and Efficient Memory for Resource-Limited Transfer Learning, "
    "arXiv 2407.07523",
    formula="for each stack of n blocks n (d c + 3 c) + (c + 1) + 1 + (c d + 3 d)",
    kinds=("trunk",),
    named=(),
    roles=("early",),
    lr=1e-3,
    fresh="the last block is given what the network makes of the earlier ones, which is far from what they gave",
    size=("size",),
)
def plan(sites: Sequence[Site], config: SHERL) -> Plan:
    """The last block is given LN(W_out relu(z) + b_out) + tanh(gamma / 0.1) x_n, gamma = 0 at the start.

    z joins n states, from what the first block is given to what the last but one gives, token by token: see
    `bind.Guidance`. The last block is frozen, and gradients go through it alone. Weights begin as torch's, biases as
    zero. Shapes: W_i (c, d), f (c,), W_out (d, c). Cost: T (n + 1) c d products and T n^2 c.
    Source: arXiv 2407.07523; github.com/Paranioar/SHERL @36b4496, adapter_for_transformer.py, of the form for BERT.
    Differs: no dropout behind the last norm; in models of an encoder and a decoder each stack has a network of its own,
    where theirs has one late layer in the decoder alone.
    """

    def slots(s: Site) -> dict[str, Pool]:
        n, d = states(s), s.out
        c = config.size or max(3, d // 2)
        return {
            "W": Pool((n, c, d), kaiming(d)),
            "b": Pool((n, c), ZEROS),
            "gain": Pool((n, c), ONES),
            "shift": Pool((n, c), ZEROS),
            "f": Pool((c,), kaiming(c)),
            "f_bias": Pool((1,), ZEROS),
            "W_out": Pool((d, c), kaiming(c)),
            "b_out": Pool((d,), ZEROS),
            "gain_out": Pool((d,), ONES),
            "shift_out": Pool((d,), ZEROS),
            "gamma": Pool((1,), ZEROS),
        }

    return beside("sherl", sites, "early", slots, lambda s: Guidance())
