"""Bottleneck adapters: a small network after attention and after the feed-forward part of every block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import Bottleneck as Bind
from ...core import ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method


@config
class Bottleneck:
    size: int | None = option(None, "width r of the bottleneck; none: d_out / reduction, at least 1", ge=1)
    reduction: int = option(16, "how many times narrower than the layer's output, when size is none", ge=1)
    act: Literal["gelu", "relu", "gelu_new"] = option(
        "gelu", "the activation between the two matrices; gelu_new: GELU by a tanh"
    )
    start: Literal["zero", "normal"] = option(
        "zero", "zero: W_up is zero; normal: both matrices are normal with deviation 0.02, as in VL-Adapter"
    )
    placement: Literal["houlsby", "pfeiffer"] = option(
        "houlsby", "houlsby: every site, by default after attention and feed-forward; pfeiffer: not after attention"
    )


def placed(name: str, sites: Sequence[Site], placement: str) -> list[Site]:
    """The sites that carry an adapter: pfeiffer leaves out the attention's output projection."""
    mine = [s for s in sites if placement == "houlsby" or s.role != "attn_out"]
    if not mine:
        raise CommonweightError(
            f"{name}: placement='pfeiffer' wants the second projection of a feed-forward part, but all {len(sites)} "
            f"sites are attention outputs, {sites[0].name} the first; use placement='houlsby', or choose other sites"
        )
    return mine


@method(
    "bottleneck",
    Bottleneck,
    paper="Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751 (pfeiffer: AdapterFusion, arXiv 2005.00247)",
    formula="sum over sites of 2 r d_out + r + d_out",
    roles=("attn_out", "down"),
    depthwise=False,
    lr=1e-3,
    size=("size",),
)
def plan(sites: Sequence[Site], config: Bottleneck) -> Plan:
    """y' = y + W_up act(W_down y + b_down) + b_up, y the layer's output before the residual sum; W_up starts at zero.

    Shapes: W_down (r, d_out), b_down (r,), W_up (d_out, r), b_up (d_out,). Linear in: W_up and b_up, each alone.
    Cost: 2 T r d_out products a site; it cannot be merged into weights.
    Source: arXiv 1902.00751, section 2.1 and figure 2; "pfeiffer": arXiv 2005.00247, one adapter a block.
    Differs: W_up and b_up start at zero and W_down is uniform in 1 / sqrt(d_out), where the paper draws both near
    zero; the layer norms stay frozen; the base's dropout comes after the adapter; "pfeiffer" keeps the residual
    inside the adapter and adds no layer norm.
    VL-Adapter (arXiv 2112.06825; github.com/ylsung/VL_adapter @545fcbb) is reduction=8, act="gelu_new", start="normal"
    (BART's), one tenant for all tasks, with its layer norms beside it: `modules_to_save` names them.
    Raises: CommonweightError when "pfeiffer" leaves no site.
    """
    pools, uses, drawn = {}, [], config.start == "normal"
    for s in placed("bottleneck", sites, config.placement):
        d, r = s.out, config.size or max(1, s.out // config.reduction)
        slots = {
            "down": Pool((r, d), Normal(0.02) if drawn else kaiming(d)),
            "down_bias": Pool((r,), ZEROS),
            "up": Pool((d, r), Normal(0.02) if drawn else ZEROS),
            "up_bias": Pool((d,), ZEROS),
        }
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        uses.append(Use(s.name, Bind(config.act), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
