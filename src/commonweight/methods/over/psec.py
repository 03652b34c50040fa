"""PSEC: skills as frozen tenants, and a network that says from a token's state how much of each to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind.over import Over, State
from ...core import ZEROS, Constant, Plan, Pool, Read, Site, Use, config, kaiming, option
from ...core.names import by_layer
from ..registry import over
from .plans import Below, stand


@config
class PSEC:
    hidden: int = option(32, "width of the network that weighs the skills", ge=1)
    context: Literal["token", "row"] = option(
        "token",
        "what the network reads: each token's state in the layer, or its row's embedding (a decoder's: its prompt's), "
        "one for all layers",
    )


@over(
    "psec",
    PSEC,
    paper="Skill Expansion and Composition in Parameter Space, arXiv 2502.05932",
    formula="h (d + n + 1) + n for each width d of what sites are given",
    fresh="it begins with the mean of its tenants' updates",
)
def plan(sites: Sequence[Site], config: PSEC, below: Below) -> Plan:
    """h = W x + sum_i a_i(z) B_i A_i x, a = W2 relu(W1 z + b1) + b2: one network for all sites, of any sign and size.

    context=row: z is the mean of the row's input embeddings, padding aside (ours), in a decoder of its prompt's, so
    that a row has one weight a skill in the whole network, as an agent's state in the code; d is then the width of the
    first site. Else z: what the site is given; where that is of another width than what the layer's first site is given
    (after an activation), what the last site before it of that width was given. Shapes: W1 (h, d), W2 (n, h), zero at
    the start, b2 = 1 / n. Source: github.com/ltlhuuu/PSEC @5f3bde2, lora_alpha.py. Differs: there z is the state of an
    agent, one for the whole network; tokens have a state each, so that weights differ from token to token and layer to
    layer, and generation needs nothing of the tokens before. The anchor of the mean weights (to alpha_r) is left out.
    """
    found = stand(sites, below)
    pools, uses = dict(found.pools), []
    row = config.context == "row"
    lender = dict.fromkeys((s.name for s in sites), sites[0]) if row else lenders(sites)
    lends = set() if row else {at.name for n, at in lender.items() if at.name != n}
    for s in sites:
        at = lender[s.name]
        mine = {"W1": Pool((config.hidden, at.inp), kaiming(at.inp)), "b1": Pool((config.hidden,), ZEROS)}
        mine |= {"W2": Pool((len(below), config.hidden), ZEROS), "b2": Pool((len(below),), Constant(1 / len(below)))}
        pools |= {f"state{at.inp}.{k}": p for k, p in mine.items()}
        reads = {k: Read(WHOLE, (f"state{at.inp}.{k}",)) for k in mine}
        source = "" if row or at is s else at.name.split("[")[0]
        bind = Over(found.parts[s.name], State(), source, s.name in lends, "embeddings" if row else "")
        uses.append(Use(s.name, bind, {**found.reads[s.name], **reads}))
    return Plan(pools, tuple(uses))


def lenders(sites: Sequence[Site]) -> dict[str, Site]:
    """{site: the one whose input its weights are made from}; each is lent to one site at most."""
    by_name, out = {s.name: s for s in sites}, {}
    for names in by_layer([*by_name]):
        width, last = by_name[names[0]].inp, None
        for n in names:
            s = by_name[n]
            if s.inp == width and s.kind != "expert":
                out[n] = last = s
            else:
                out[n], last = (last if last is not None and s.kind != "expert" else s), None
    return out
