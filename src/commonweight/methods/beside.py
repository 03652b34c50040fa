"""What a tenant holds beside its method: copies of whole weights, and entries of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from ..address import WHOLE
from ..bind import Copy
from ..core import Plan, Pool, Read, Rng, Site, Source, Use, serial
from .selective.tokens import entries

Ids = tuple[int, ...]


class Beside(NamedTuple):
    """copies: sites whose weight and bias are the tenant's own. rows: (site, entries of it that are). biases: sites
    whose bias alone is. A plan is a union of plans: the method's, a head's, and this."""

    copies: tuple[str, ...] = ()
    rows: tuple[tuple[str, Ids], ...] = ()
    biases: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        return (*self.copies, *(n for n, _ in self.rows), *self.biases)


@serial
@dataclass(frozen=True)
class OfSite:
    """The base's own weight at a site, or its bias. across: (inp, out)."""

    site: str
    across: bool = False
    of_bias: bool = False
    derived: ClassVar[bool] = True

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        if self.of_bias:
            return base.bias(self.site).clone()
        w = base.weight(self.site)
        return (w.T if self.across else w).contiguous().clone()


def copied(s: Site, bias_alone: bool = False) -> tuple[dict[str, Pool], Use]:
    """Starts as the base's. Learning rate: a tenth of the method's, as `full` has a tenth of LoRA's."""
    across = s.kind == "embedding"
    shape = (s.out,) if s.kind == "norm" else (s.inp, s.out) if across else (s.out, s.inp)
    pools = {} if bias_alone else {f"{s.name}.W": Pool(shape, OfSite(s.name, across), lr=0.1)}
    if s.bias:
        pools[f"{s.name}.b"] = Pool((s.out,), OfSite(s.name, of_bias=True), lr=0.1)
    return pools, Use(s.name, Copy(across), {n.rpartition(".")[2]: Read(WHOLE, (n,)) for n in pools})


def beside(held: Beside, sites: Sequence[Site], seed: int = 0) -> Plan:
    """The plan of what is held: what the method changes at these sites, it changes of this. sites: those of `held`.

    Count: of a copy d_out d_in and the bias; of n entries n d. Raises: CommonweightError for an entry beyond the last.
    """
    pools: dict[str, Pool] = {}
    uses = []
    by_name = {s.name: s for s in sites}
    found = [copied(by_name[n]) for n in held.copies] + [entries(by_name[n], ids) for n, ids in held.rows]
    found += [copied(by_name[n], bias_alone=True) for n in held.biases]
    for mine, use in found:
        pools |= mine
        uses.append(use)
    return Plan(pools, tuple(uses), seed)


def without(plan: Plan, held: Beside) -> Plan:
    """The rest of a plan that `beside` begins."""
    mine = plan.uses[len(held.sites) :]
    read = {n for u in mine for r in u.reads.values() for n in r.pools}
    known = {n for u in plan.uses[: len(held.sites)] for r in u.reads.values() for n in r.pools}
    return plan._replace(pools={n: p for n, p in plan.pools.items() if n in read or n not in known}, uses=mine)
