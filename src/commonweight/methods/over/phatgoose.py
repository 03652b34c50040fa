"""PHATGOOSE: a gate is trained for each tenant alone; afterwards tokens take the tenants whose gates are like them."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind.over import Over, Sigmoid, Standard
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, option
from ..registry import over
from .plans import Below, frozen, stand


@config
class PHATGOOSE:
    active: int = option(2, "tenants that a token takes, where there are so many", ge=1)


@over(
    "phatgoose",
    PHATGOOSE,
    paper="Learning to Route Among Specialized Experts for Zero-Shot Generalization, arXiv 2402.05859",
    formula="over one tenant: sum over sites of d_in; over several: 0",
    lr=5e-3,
    fresh="it begins with a half of its tenant's update; over several, with those that tokens take",
)
def plan(sites: Sequence[Site], config: PHATGOOSE, below: Below) -> Plan:
    """Over one tenant, a gate is trained: h = W x + sigmoid(v x) B A x. Over several that have a gate each, nothing is:
    g = softmax of the k largest v'_i x' / sqrt(d_in), v' and x' of mean 0 and variance 1.

    Shapes: v (1, d_in), zero at the start. Source: arXiv 2402.05859, section 3. ``host.add("a-gate", "phatgoose",
    over=["a"])``, trained on the rows of a; then ``host.add("all", "phatgoose", over=["a-gate", "b-gate"])``.
    Raises: for several tenants of which one has no gate, and for one that has one already.
    """
    gated = [_gated(p) for _, p in below]
    if len(below) == 1 and not gated[0]:
        found = stand(sites, below)
        pools, uses = dict(found.pools), []
        for s in sites:
            pools[f"{s.name}.v"] = Pool((1, s.inp), ZEROS)
            reads = {**found.reads[s.name], "v": Read(WHOLE, (f"{s.name}.v",))}
            uses.append(Use(s.name, Over(found.parts[s.name], Sigmoid()), reads))
        return Plan(pools, tuple(uses))
    if len(below) == 1 or not all(gated):
        name = below[gated.index(len(below) == 1)][0]
        raise CommonweightError(
            f"{name}: over several tenants each must have a gate of its own, and over one tenant it must have none: "
            'first host.add("a-gate", "phatgoose", over=["a"]) for each, and train it'
        )
    return _routed(sites, config, below)


def _gated(plan: Plan) -> bool:
    return any(isinstance(u.bind, Over) and isinstance(u.bind.gate, Sigmoid) for u in plan.uses)


def _routed(sites: Sequence[Site], config: PHATGOOSE, below: Below) -> Plan:
    pools: dict[str, Pool] = {}
    uses = []
    for s in sites:
        parts, reads = [], {}
        for i, (_, plan) in enumerate(below):
            use = next((u for u in plan.uses if u.site == s.name), None)
            parts.append(() if use is None else use.bind.parts[0])
            if use is None:  # no gate here: the tenant adds nothing
                pools[f"{i}:{s.name}.v"] = Pool((1, s.inp), ZEROS, train=False, save=False)
                reads[f"v{i}"] = Read(WHOLE, (f"{i}:{s.name}.v",))
                continue
            for slot, read in use.reads.items():
                mine = f"v{i}" if slot == "v" else f"{i}.{slot.partition('.')[2]}"
                reads[mine] = Read(read.address, tuple(f"{i}/{p}" for p in read.pools))
                pools |= {f"{i}/{p}": frozen(plan.pools[p]) for p in read.pools}
        uses.append(Use(s.name, Over(tuple(parts), Standard(min(config.active, len(below)))), reads))
    return Plan(pools, tuple(uses))
