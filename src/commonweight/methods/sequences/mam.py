"""Mix and match: a prefix in attention and a scaled adapter beside the feed-forward part, in one tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...core import CommonweightError, Plan, Site, config, counted, option
from ..adapters.parallel import beside
from ..registry import method
from . import prefix_tuning


@config
class MAM:
    tokens: int = option(16, "keys and values m in front of each attention", ge=1)
    size: int = option(16, "width r of the adapter beside each feed-forward part", ge=1)
    scale: float = option(4.0, "factor s on what the adapter adds", gt=0)
    act: Literal["gelu", "relu"] = option("relu", "the activation between the adapter's two matrices")
    projection: int = option(
        0, "width h of the network that makes the prefix while it is trained; 0: it is trained itself", ge=0
    )
    std: float = option(
        1.0, "deviation of the normal numbers that the prefix, or E with a projection, starts from", ge=0
    )

    @property
    def prefix(self) -> prefix_tuning.PrefixTuning:
        return prefix_tuning.PrefixTuning(tokens=self.tokens, projection=self.projection, std=self.std)


def compact(config: MAM, pools: Mapping[str, Tensor]) -> tuple[MAM, Mapping[str, Tensor]]:
    """Without the network: the keys and values that it gives, and the adapters as they are."""
    if not config.projection:
        return config, pools
    of_prefix = {n for n in pools if ".prefix." in f".{n}"}
    _, made = prefix_tuning.compact(config.prefix, {n: pools[n] for n in of_prefix})
    return replace(config, projection=0), {**made, **{n: p for n, p in pools.items() if n not in of_prefix}}


@method(
    "mam",
    MAM,
    paper="Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv 2110.04366",
    formula="sum over attentions of 2 m w, over feed-forward parts of r (d_in + d_out) + r + d_out",
    kinds=("prefix", "ffn"),
    named=(),
    lr=1e-3,
    fresh="every token reads the prefix, whatever it holds",
    size=("tokens", "size"),
    compact=compact,
)
def plan(sites: Sequence[Site], config: MAM) -> Plan:
    """softmax(q [P_K; K]^T) [P_V; V] in every attention, y + s (W_up act(W_down x + b_down) + b_up) beside every ffn.

    Shapes: P (2, m, w), W_down (r, d_in), b_down (r,), W_up (d_out, r), b_up (d_out,). A projection: see prefix-tuning.
    Linear in: P; W_up and b_up, each alone. Cost: m more keys a layer and T r (d_in + d_out) products a part; it cannot
    be merged. It is the plan of `prefix-tuning` and that of `parallel` as one; the adapter is exact at the start.
    Source: arXiv 2110.04366, section 4.6; github.com/jxhe/unify-parameter-efficient-tuning (m 30 and r 512 there for
    XSum, 16 and 16 for GLUE; s 4 and 2; h 800). Differs: one rate for both halves is theirs too, but the start of P
    without a projection is PEFT's, normal numbers; the adapter's output passes no dropout.
    Raises: CommonweightError where the sites are of one kind alone.
    """
    ahead, parts = ([s for s in sites if s.kind == kind] for kind in ("prefix", "ffn"))
    if not ahead or not parts:
        raise CommonweightError(
            f"mam: a prefix and an adapter beside the ffn, but all of the {counted(len(sites), 'site')} are of kind "
            f"{sites[0].kind}; choose sites of both kinds, or take {'prefix-tuning' if ahead else 'parallel'}"
        )
    of_prefix = prefix_tuning.plan(ahead, config.prefix)
    pools, uses = dict(of_prefix.pools), list(of_prefix.uses)
    for s in parts:
        mine, use = beside(s, config.size, config.act, config.scale)
        pools |= mine
        uses.append(use)
    return Plan(pools, tuple(uses))
