"""VL-PET: an adapter after attention and after the feed-forward part, and a gate on both with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import GatedPart
from ...core import ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import method

_START = Normal(0.02)


@config
class VLPET:
    size: int = option(96, "width r of the adapter", ge=1)
    gate_size: int = option(96, "width q of the network that makes a large gate", ge=1)
    gate: Literal["large", "token", "channel", "row"] = option(
        "large", "what has a gate of its own: each number (large), token (middleX), channel (middleY) or row (small)"
    )


def _slots(d: int, config: VLPET) -> dict[str, Pool]:
    r, q = config.size, config.gate_size
    adapter = {
        "down": Pool((r, d), _START),
        "down_bias": Pool((r,), ZEROS),
        "up": Pool((d, r), _START),
        "up_bias": Pool((d,), ZEROS),
    }
    gates = {
        "large": {
            "gate_down": Pool((q, d), _START),
            "gate_down_bias": Pool((q,), ZEROS),
            "gate_up": Pool((d, q), _START),
            "gate_up_bias": Pool((d,), ZEROS),
        },
        "token": {"gate": Pool((d,), _START), "gate_bias": Pool((1,), ZEROS)},
        "channel": {"gate": Pool((d,), _START)},
        "row": {"gate": Pool((2 * d,), _START), "gate_bias": Pool((1,), ZEROS)},
    }
    return adapter | gates[config.gate]


@method(
    "vl-pet",
    VLPET,
    paper="VL-PET: Vision-and-Language Parameter-Efficient Tuning via Granularity Control, arXiv 2308.09804",
    formula="sum over parts of 2 r d + r + d and of the gate: 2 q d + q + d (large), d + 1 (token), d (channel) or "
    "2 d + 1 (row)",
    kinds=("ffn", "attention"),
    named=(),
    lr=1e-3,
    fresh="the gate begins near one half, or near one for each channel, and the adapter near zero",
    size=("gate_size", "size"),
)
def plan(sites: Sequence[Site], config: VLPET) -> Plan:
    """y' = G o (y + U gelu(D y + b) + c): y what a part gives before it is added, G the gate.

    G = sigmoid(U_g gelu(D_g x + b_g) + c_g) for "large", sigmoid(w (x + z) + b) of a token, the mean of
    sigmoid(w [x; z] + b) over the tokens of a row, 1 + g of a channel; x what the part is given, z the adapter's sum.
    All matrices begin as N(0, 0.02^2), as in BART's code.
    Shapes: D (r, d), U (d, r), D_g (q, d), U_g (d, q), w and g (d,), of a row w (2 d,). Cost: 2 T r d products a part,
    and 2 T q d of a large gate; it cannot be merged into weights.
    Source: arXiv 2308.09804; github.com/HenryHZY/VL-PET @7430cad, modeling_bart.py.
    Differs: every part that is read, where the paper has a parallel adapter on cross-attention's values in the decoder;
    in models whose norm stands before a part, x is the normed state; norms stay frozen. The mean of "row" leaves
    padding out, which theirs counts, so that a row's answer there goes by its batch. Raises: CommonweightError where a
    part gives another width than it is given; "row" in causal blocks.
    """
    pools, uses = {}, []
    for s in sites:
        if s.out != s.inp:
            raise CommonweightError(
                f"vl-pet: {s.name} is given {s.inp} numbers a token and gives {s.out}; wanted as many. Leave it out"
            )
        slots = _slots(s.out, config)
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        uses.append(Use(s.name, GatedPart(config.gate), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
