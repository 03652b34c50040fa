"""LoRAHub: one update whose two factors are sums of several tenants' factors, with one weight a tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...address import WHOLE
from ...bind import LowRank
from ...bind.over import Blend
from ...core import CommonweightError, Constant, Plan, Pool, Read, Site, Use, config, option
from ..registry import over
from .plans import Below, stand


@config
class LoRAHub:
    penalty: float = option(0.05, "weight of the mean |weight| in the loss", ge=0)


def _penalty(config: LoRAHub, plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    return config.penalty * pools["weights"].abs().mean()


@over(
    "lorahub",
    LoRAHub,
    paper="LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition, arXiv 2307.13269",
    formula="n, one for each tenant",
    penalty=_penalty,
    lr=1e-2,
    fresh="it begins with the mean of its tenants' factors",
)
def plan(sites: Sequence[Site], config: LoRAHub, below: Below) -> Plan:
    """h = W x + s (sum_i c_i B_i) (sum_i c_i A_i) x, one c for all sites; `penalty` mean |c| is added to the loss.

    Shapes: c (n,), 1 / n at the start. Source: arXiv 2307.13269, eq. (1) and (2); github.com/sail-sg/lorahub. Differs:
    c is trained by gradients, where the paper searches it without (Nevergrad, within 1.5, from zeros, at which there is
    no gradient). Raises: for tenants that are no LoRA of one rank and scale at the same sites.
    """
    found = stand(sites, below)
    pools, uses = {**found.pools, "weights": Pool((len(below),), Constant(1 / len(below)))}, []
    for s in sites:
        binds = [b for bs in found.parts[s.name] for b in bs]
        shapes = {tuple(found.pools[p].shape for r in [found.reads[s.name][f"{i}.0.A"]] for p in r.pools)
                  for i, bs in enumerate(found.parts[s.name]) if bs and f"{i}.0.A" in found.reads[s.name]}  # fmt: skip
        alike = len({b.scale if type(b) is LowRank else None for b in binds}) == 1 and len(shapes) == 1
        if not alike or any(len(bs) != 1 for bs in found.parts[s.name]) or type(binds[0]) is not LowRank:
            raise CommonweightError(
                f"{', '.join(n for n, _ in below)}: at {s.name} they are not all LoRA of one rank and one scale; stand "
                "on tenants of one method, options and sites, or take another way of weighing them"
            )
        reads = {k: r for k, r in found.reads[s.name].items() if k.endswith((".A", ".B"))}
        uses.append(Use(s.name, Blend(len(below), binds[0].scale), {**reads, "c": Read(WHOLE, ("weights",))}))
    return Plan(pools, tuple(uses))
