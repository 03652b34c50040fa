"""AutoLoRA's fusion: several tenants' updates, gated channel by channel by what they and the base give."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind.over import Fusion, Over
from ...core import ONES, ZEROS, Constant, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import over
from .plans import Below, stand


@config
class AutoLoRA:
    start: float = option(0.512, "factor of every update at the start")


@over(
    "autolora",
    AutoLoRA,
    paper="AutoLoRA: Automatic LoRA Retrieval and Fine-Grained Gated Fusion for Text-to-Image Generation",
    formula="8 sum over sites of d_out, however many tenants",
    fresh="it begins with about a half of its tenants' updates",
)
def plan(sites: Sequence[Site], config: AutoLoRA, below: Below) -> Plan:
    """h = y + sum_i w g_i u_i, g_i = sigmoid(u'_i a + y' u'_i c + b), u_i = B_i A_i x, y = W x, u' and y' normalised.

    Shapes: a, b, c ~ N(0, 1), w and two LayerNorms, all (d_out,): one set a site for all tenants. Source:
    github.com/lzws/AutoLoRA @cf7491f, class AutoLoRALinear ("no_base"). Differs: the loss of the task alone; the
    official training has a third update by a helper that its repository lacks, and a hinge on another prompt.
    """
    found = stand(sites, below)
    pools, uses = dict(found.pools), []
    for s in sites:
        mine = {k: Pool((s.out,), Normal(1.0)) for k in "abc"} | {"w": Pool((s.out,), Constant(config.start))}
        for k in "uy":
            mine |= {f"gain_{k}": Pool((s.out,), ONES), f"shift_{k}": Pool((s.out,), ZEROS)}
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}
        uses.append(Use(s.name, Over(found.parts[s.name], Fusion()), {**found.reads[s.name], **reads}))
    return Plan(pools, tuple(uses))
