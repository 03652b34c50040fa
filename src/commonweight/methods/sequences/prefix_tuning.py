"""Prefix tuning: keys and values of its own in front of those of every attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import KeysValues, ProjectedKeysValues
from ...core import Normal, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method


@config
class PrefixTuning:
    tokens: int = option(16, "keys and values m in front of each attention", ge=1)
    projection: int = option(
        0, "width h of the network that makes them while they are trained; 0: they are trained themselves", ge=0
    )
    std: float = option(1.0, "deviation of the normal numbers that they, or E with a projection, start from", ge=0)


def compact(config: PrefixTuning, pools: Mapping[str, Tensor]) -> tuple[PrefixTuning, Mapping[str, Tensor]]:
    """Without the network: the keys and values that it gives."""
    if not config.projection:
        return config, pools
    first = {k: pools[f"prefix.{k}"] for k in ("E", "W1", "b1")}
    out = {}
    for name in (n.removesuffix(".W2") for n in pools if n.endswith(".W2")):
        slots = {k: pools[f"{name}.{k}"] for k in ("W2", "b2")}
        k, v = ProjectedKeysValues().ahead(**first, **slots)
        out[f"{name}.P"] = torch.stack([k, v])
    return replace(config, projection=0), out


@method(
    "prefix-tuning",
    PrefixTuning,
    paper="Prefix-Tuning: Optimizing Continuous Prompts for Generation, arXiv 2101.00190",
    formula="sum over attentions of 2 m w, w the width of their keys; with a projection m e + h (e + 1) + 2 w (h + 1)",
    kinds=("prefix",),
    named=(),
    lr=1e-2,
    fresh="every token reads the prefix, whatever it holds",
    size=("tokens",),
    compact=compact,
)
def plan(sites: Sequence[Site], config: PrefixTuning) -> Plan:
    """softmax(q [P_K; K]^T) [P_V; V] in every attention: m keys and values of the tenant's own stand before the row's.

    Shapes: P (2, m, w), w = heads of keys * d_head. With a projection P = W2 tanh(W1 E + b1) + b2: E (m, e) and W1
    (h, e) are one for all layers, W2 (2 w, h) each layer's own; e is the first layer's w. `compact` leaves P alone.
    Linear in: P. Cost: m more keys a layer; it cannot be merged. The tokens behind move on by m positions, the keys
    are not rotated, and a sliding window does not lose them.
    Source: arXiv 2101.00190, sections 4.2 and 4.3; PEFT's PREFIX_TUNING, to the bit. Start: PEFT's, normal numbers;
    the paper starts from activations of real words where rows are few.
    """
    m, h = config.tokens, config.projection
    pools: dict[str, Pool] = {}
    uses = []
    if h:
        e = sites[0].out
        pools = {
            "prefix.E": Pool((m, e), Normal(config.std)),
            "prefix.W1": Pool((h, e), kaiming(e)),
            "prefix.b1": Pool((h,), kaiming(e)),
        }
    for s in sites:
        if not h:
            pools[f"{s.name}.P"] = Pool((2, m, s.out), Normal(config.std))
            uses.append(Use(s.name, KeysValues(), {"P": Read(WHOLE, (f"{s.name}.P",))}))
            continue
        pools[f"{s.name}.W2"] = Pool((2 * s.out, h), kaiming(h))
        pools[f"{s.name}.b2"] = Pool((2 * s.out,), kaiming(h))
        reads = {k: Read(WHOLE, (f"prefix.{k}",)) for k in ("E", "W1", "b1")}
        uses.append(
            Use(s.name, ProjectedKeysValues(), reads | {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in ("W2", "b2")})
        )
    return Plan(pools, tuple(uses))
