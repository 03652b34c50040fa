"""SNNK: adapters whose first matrix and activation are random features of a kernel, drawn once and frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import Bottleneck
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import method
from .bottleneck import placed


@config
class SNNK:
    features: int = option(16, "random features m of each adapter", ge=1)
    placement: Literal["houlsby", "pfeiffer"] = option(
        "pfeiffer", "houlsby: every site, by default after attention and feed-forward; pfeiffer: not after attention"
    )


@method(
    "snnk",
    SNNK,
    paper="Scalable Neural Network Kernels, arXiv 2310.13225",
    formula="sum over sites of (m + 1) d_out",
    roles=("attn_out", "down"),
    depthwise=False,
    lr=1e-3,
    size=("features",),
)
def plan(sites: Sequence[Site], config: SNNK) -> Plan:
    """y' = y + U psi(y) + b, psi(y) = m^(-1/2) max(G y, 0), G a frozen matrix of N(0, 1) that the seed gives back.

    Shapes: G (m, d_out), not saved; U (d_out, m) and b (d_out,), zero at the start. Linear in: U and b, each alone.
    psi(x) psi(w) is on average half of the arc-cosine kernel of order 1, |x| |w| (sin t + (pi - t) cos t) / (2 pi), t
    the angle between them. Cost: 2 T m d_out products a site; it cannot be merged into weights.
    Source: arXiv 2310.13225, section 3 (the ReLU kernel, c = 0) and its adapters; code arijitthegame/neural-network-
    kernels. Differs: theirs has a second matrix between psi and U, which is bundled into U here, as the paper does
    with consecutive linear maps; G is drawn by the seed, where their state dict loses it; no orthogonal G, no
    exponential kernel.
    Raises: CommonweightError when "pfeiffer" leaves no site.
    """
    pools, uses = {}, []
    for s in placed("snnk", sites, config.placement):
        d, m = s.out, config.features
        slots = {
            "down": Pool((m, d), Normal(m**-0.5), train=False, save=False),
            "down_bias": Pool((m,), ZEROS, train=False, save=False),
            "up": Pool((d, m), ZEROS),
            "up_bias": Pool((d,), ZEROS),
        }
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        uses.append(Use(s.name, Bottleneck("relu"), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
