"""LST: a narrow transformer beside the model, which climbs on what each of its blocks gives."""

from __future__ import annotations

from collections.abc import Sequence

from ...bind import Ladder, narrow
from ...core import ONES, ZEROS, CommonweightError, Plan, Pool, Site, config, kaiming, option
from ..registry import method
from .plans import beside, states


@config
class LST:
    reduction: int = option(8, "how many times narrower than the model the ladder is", ge=1)
    heads: int = option(4, "heads of its attention; its width is made a multiple of them", ge=1)
    expansion: float = option(4.0, "how many times wider its feed-forward layers are than it", gt=0)
    drop: tuple[int, ...] = option((), "blocks, counted from 0, that have no rung")


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
)
def plan(sites: Sequence[Site], config: LST) -> Plan:
    """h_0 = W_0 x_0 + b_0; h := block_i(mu_i h + (1 - mu_i) (W_i x_i + b_i)), mu_i = sigmoid(alpha_i / 0.1), alpha = 0;
    y' = W_up N(h) + b_up.

    x_0 what the first block is given, x_i what block i gives, c = d / reduction the ladder's width, f of its
    feed-forward layers. No gradient goes through the model, and nothing is kept of it but what its blocks give. The
    ladder attends over whole rows: with a cache generation is refused. Weights begin as torch's, biases as zero.
    Source: arXiv 2206.06522; github.com/ylsung/Ladder-Side-Tuning @1798e82, modeling_side_t5.py.
    Differs: its blocks are of one make for all models (norms as T5's, GELU, no positions of their own), and begin at
    random, where theirs are the model's, cut down by Fisher information; no dropout; what it gives goes through the
    model's last norm, where that lies behind the blocks; a decoder's ladder does not read the encoder's.
    Raises: CommonweightError for a block to drop that is not there.
    """

    def kept(s: Site) -> tuple[int, ...]:
        n = states(s) - 1
        if wrong := [i for i in config.drop if not 0 <= i < n]:
            raise CommonweightError(f"lst: drop names block {wrong[0]}, and {s.name} has {n}, counted from 0")
        return tuple(i for i in range(n) if i not in config.drop)

    def slots(s: Site) -> dict[str, Pool]:
        k, d, c = len(kept(s)), s.out, narrow(s.out, config.reduction, config.heads)
        f = max(1, round(config.expansion * c))
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
