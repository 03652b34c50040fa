"""The plan that mixtures of low-rank experts have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...address import WHOLE
from ...bind import Mixture
from ...core import ZEROS, Plan, Pool, Read, Site, Use, kaiming
from ...core.init import Init


def mixture(
    sites: Sequence[Site],
    bind: Callable[[int], Mixture],
    experts: Sequence[int],
    rank: int,
    *,
    first: Callable[[int], Init] = kaiming,
    router: Callable[[int], Init] = kaiming,
    shared: bool = False,
    shifted: bool = False,
) -> Plan:
    """A, B and a router at every site, B zero at the start.

    bind: of the number of experts at a site. experts: that number, site by site. rank: of each of them. first, router:
    the starts of A and of the router, of d_in. shared: one A for all experts of a site. shifted: with a
    `shift` of the scores, zero at the start, which no gradient moves.
    """
    pools, uses = {}, []
    for s, n in zip(sites, experts, strict=True):
        mine = {
            "A": Pool((rank if shared else n * rank, s.inp), first(s.inp)),
            "B": Pool((s.out, n * rank), ZEROS),
            "router": Pool((n, s.inp), router(s.inp)),
        }
        if shifted:
            mine["shift"] = Pool((n,), ZEROS, train=False)
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, bind(n), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
