"""Arrow: each token takes the tenants whose updates would move it most. Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind.over import Likeness, Over
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, option
from ..registry import over
from .plans import Below, stand


@config
class Arrow:
    active: int = option(3, "tenants that a token takes, where there are so many", ge=1)
    temperature: float = option(1.0, "what likenesses are divided by", gt=0)


def _derived(config: Arrow, plan: Plan, pools: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first right singular vector of each tenant's update at each site; 0 where it has none."""
    out = {}
    for use in plan.uses:
        rows = []
        for i, binds in enumerate(use.bind.parts):
            v = torch.zeros(plan.pools[f"{use.site}.v"].shape[1])
            if binds:
                reads = {k.rpartition(".")[2]: r for k, r in use.reads.items() if k.startswith(f"{i}.0.")}
                slots = {k: r.address(*(pools[p] for p in r.pools)) for k, r in reads.items()}
                A, B = binds[0].factors(**{k: v.detach().float().cpu() for k, v in slots.items()})
                v = torch.linalg.svd(torch.linalg.qr(B).R @ A, full_matrices=False).Vh[0]
            rows.append(v)
        out[f"{use.site}.v"] = torch.stack(rows)
    return out


@over(
    "arrow",
    Arrow,
    paper="Towards Modular LLMs by Building and Reusing a Library of LoRAs, arXiv 2405.11157",
    formula="0",
    derived=_derived,
    fresh="it answers with its tenants' updates from the start",
)
def plan(sites: Sequence[Site], config: Arrow, below: Below) -> Plan:
    """h = W x + sum_i g_i B_i A_i x, g the softmax over the k largest |v_i x| / temperature, v_i the first right
    singular vector of B_i A_i.

    Shapes: v (n, d_in), worked out of the tenants. Source: arXiv 2405.11157, section 4.2; PEFT's `ArrowConfig`, whose
    constants these are, without its general adapters that are subtracted. Raises: for tenants that are not low rank.
    """
    found = stand(sites, below)
    pools, uses = dict(found.pools), []
    for s in sites:
        for (name, _), binds in zip(below, found.parts[s.name]):
            low_rank(name, s, binds)
        pools[f"{s.name}.v"] = Pool((len(below), s.inp), ZEROS, train=False, save=False)
        bind = Over(found.parts[s.name], Likeness(min(config.active, len(below)), config.temperature))
        uses.append(Use(s.name, bind, {**found.reads[s.name], "v": Read(WHOLE, (f"{s.name}.v",))}))
    return Plan(pools, tuple(uses))


def low_rank(name: str, site: Site, binds: Sequence) -> None:
    """Raises: CommonweightError where a tenant has no update of two factors at the site."""
    if len(binds) > 1 or any(getattr(b, "factors", None) is None for b in binds):
        raise CommonweightError(f"{name}: at {site.name} it is no update of low rank; stand on tenants such as lora")
