"""The parallel adapter: a small network beside the feed-forward part, or beside attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import Parallel as Beside
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, counted, kaiming, option
from ..registry import method


@config
class Parallel:
    size: int | None = option(None, "width r of the bottleneck; none: d_in / reduction, at least 1", ge=1)
    reduction: int = option(16, "how many times narrower than the layer, when size is none", ge=1)
    scale: float = option(4.0, "factor s on what the adapter adds; 1: the unscaled one", gt=0)
    act: Literal["gelu", "relu"] = option("relu", "the activation between the two matrices")
    placement: Literal["ffn", "attention", "both"] = option("ffn", "beside which parts of a block it stands")


def placed(name: str, sites: Sequence[Site], placement: str) -> list[Site]:
    """The sites of these parts."""
    mine = [s for s in sites if placement in (s.kind, "both")]
    if not mine:
        raise CommonweightError(
            f"{name}: placement={placement!r}, but none of the {counted(len(sites), 'site')} is of kind {placement}, "
            f"{sites[0].name} is of kind {sites[0].kind}; take another placement, or choose other sites"
        )
    return mine


def beside(site: Site, size: int, act: str, scale: float) -> tuple[dict[str, Pool], Use]:
    """The pools and the use of one adapter."""
    slots = {
        "down": Pool((size, site.inp), kaiming(site.inp)),
        "down_bias": Pool((size,), ZEROS),
        "up": Pool((site.out, size), ZEROS),
        "up_bias": Pool((site.out,), ZEROS),
    }
    reads = {k: Read(WHOLE, (f"{site.name}.{k}",)) for k in slots}
    return {f"{site.name}.{k}": p for k, p in slots.items()}, Use(site.name, Beside(act, scale), reads)


@method(
    "parallel",
    Parallel,
    paper="Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv 2110.04366",
    formula="sum over parts of r (d_in + d_out) + r + d_out",
    kinds=("ffn", "attention"),
    named=(),
    lr=1e-3,
    size=("size",),
)
def plan(sites: Sequence[Site], config: Parallel) -> Plan:
    """y' = y + s (W_up act(W_down x + b_down) + b_up): x what the part is given, y what it gives before it is added.

    Shapes: W_down (r, d_in), b_down (r,), W_up (d_out, r), b_up (d_out,). Linear in: W_up and b_up, each alone.
    Cost: T r (d_in + d_out) products a part; it cannot be merged into weights.
    Source: arXiv 2110.04366, table 1 and section 4.5 (scaled: s = 4); github.com/jxhe/unify-parameter-efficient-tuning.
    Differs: before the layer's dropout, which they let stand aside; in models whose norm stands before a part, x is
    the normed state. Raises: CommonweightError where no site is of the placement.
    """
    pools, uses = {}, []
    for s in placed("parallel", sites, config.placement):
        mine, use = beside(s, config.size or max(1, s.inp // config.reduction), config.act, config.scale)
        pools |= mine
        uses.append(use)
    return Plan(pools, tuple(uses))
