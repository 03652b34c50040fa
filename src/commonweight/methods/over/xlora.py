"""X-LoRA: a network on a token's hidden state scales frozen tenants' updates."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind.over import Network, Over
from ...core import Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import over
from .plans import Below, stand
from .psec import lenders


@config
class XLoRA:
    depth: int = option(1, "linear maps of the network", ge=1)
    hidden: int = option(2048, "width between them, where there are several", ge=1)
    softmax: bool = option(True, "scalings are shares of 1; else they are what the network says")
    temperature: float = option(1.0, "what the network says is divided by, before the softmax", gt=0)
    active: int = option(0, "tenants that a token takes, those with the largest scalings; 0: all", ge=0)
    layerwise: bool = option(False, "the network's last map is another one at each site")


@over(
    "xlora",
    XLoRA,
    paper="X-LoRA: Mixture of Low-Rank Adapter Experts, a Flexible Framework for Large Language Models with "
    "Applications in Protein Mechanics and Molecular Design, arXiv 2402.07148",
    formula="n (d + 1) for each width d of what sites are given; with hidden maps h (d + 1) + (depth - 2) h (h + 1) "
    "and n (h + 1); layerwise the last of them at every site",
    fresh="it begins with about the mean of its tenants' updates",
)
def plan(sites: Sequence[Site], config: XLoRA, below: Below) -> Plan:
    """h = W x + sum_i g_i B_i A_i x, g = softmax(f(z) / temperature), f linear maps with relu between; of `active` > 0,
    the others are 0 and the rest is not scaled up.

    z is the state that a layer is given, as `psec` reads it. Shapes: W0 (h, d), ..., the last (n, h or d), each with a
    bias; all uniform as a linear layer's. Source: arXiv 2402.07148; PEFT 0.21's `XLoraConfig`, whose constants these
    are. Differs: there the model runs twice, first without its adapters, and f reads the last layer's state of that
    pass: one z for all layers, twice the work, and a cache of the first pass. Here each layer's own state is read in
    the one pass there is, so that scalings differ by layer also where the network does not. No dropout in it, nor the
    softmax again over those kept (`enable_softmax_topk`).
    """
    found = stand(sites, below)
    pools, uses = dict(found.pools), []
    lender = lenders(sites)
    lends = {at.name for n, at in lender.items() if at.name != n}
    gate = Network(config.depth, config.softmax, config.temperature, config.active if config.active < len(below) else 0)
    for s in sites:
        at = lender[s.name]
        widths = [at.inp, *[config.hidden] * (config.depth - 1), len(below)]
        reads = dict(found.reads[s.name])
        for j in range(config.depth):
            own = config.layerwise and j == config.depth - 1
            front = s.name if own else f"state{at.inp}"
            mine = {f"W{j}": (widths[j + 1], widths[j]), f"b{j}": (widths[j + 1],)}
            pools |= {f"{front}.{k}": Pool(shape, kaiming(widths[j])) for k, shape in mine.items()}
            reads |= {k: Read(WHOLE, (f"{front}.{k}",)) for k in mine}
        bind = Over(found.parts[s.name], gate, "" if at is s else at.name.split("[")[0], s.name in lends)
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))
