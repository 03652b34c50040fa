"""Share: every tenant's update is a few combinations of directions that all tenants have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from glob import escape
from typing import Any

import torch

from ...address import Combine
from ...bind import LowRank
from ...core import ZEROS, CommonweightError, Normal, Orthonormal, Plan, Pool, Read, Site, Use, config, option
from ..low_rank.lora import pick
from ..registry import method


@config
class Share:
    k: int = option(32, "directions of each basis, and at most the width", ge=1)
    rank: int = option(4, "rank p of a tenant's update, and at most k", ge=1)
    ks: tuple[tuple[str, int, int], ...] = option(
        (), "(pattern, k_A, k_B): other numbers of directions for some sites, first match wins", globs=True
    )

    def check(self) -> str | None:
        wrong = next((k for k in self.ks if min(k[1:]) < 1), None)
        return f"ks gives {wrong[0]!r} the numbers {wrong[1:]}; they must be >= 1" if wrong else None


@method(
    "share",
    Share,
    paper="Shared LoRA Subspaces for almost Strict Continual Learning, arXiv 2602.06043",
    formula="sum over sites of k (d_in + d_out) + 2 k p; of it 2 k p are a late tenant's",
    lr=1e-2,
    common="the bases; its own: the coefficients",
    size=("k", "rank"),
)
def plan(sites: Sequence[Site], config: Share) -> Plan:
    """dW = (eps_B^T basis_B)^T (eps_A^T basis_A): both bases orthonormal at the start, eps_B zero, eps_A random.

    Shapes: basis_A (k_A, d_in), basis_B (k_B, d_out), eps_A (k_A, p), eps_B (k_B, p). Linear in: each alone.
    Cost: as LoRA of rank p and k p (d_in + d_out) products to combine. A late tenant trains 2 k p numbers a site.
    Adapters that are finished: `commonweight.commons.import_peft`. A task that the directions may lack: `temporary`.
    Source: arXiv 2602.06043, section 3, by two summaries that agree; its text and code were not available. Differs: in
    training together the bases are trained too, where the paper finds them in finished adapters; eps_B starts at zero,
    not at random, so that a fresh tenant is the base.
    """
    pools, uses = {}, []
    for s in sites:
        k_a = min(s.inp, int(pick([(p, a) for p, a, _ in config.ks], s.name, config.k)))
        k_b = min(s.out, int(pick([(p, b) for p, _, b in config.ks], s.name, config.k)))
        p = min(config.rank, k_a, k_b)
        small = Normal(1 / math.sqrt(3 * k_a))  # rows of A as long as LoRA's
        for slot, k, width, eps in (("A", k_a, s.inp, small), ("B", k_b, s.out, ZEROS)):
            pools[f"{s.name}.basis_{slot}"] = Pool((k, width), Orthonormal(), scope="shared", lr=0.1)
            pools[f"{s.name}.eps_{slot}"] = Pool((k, p), eps)
        reads = {k: Read(Combine(k == "B"), (f"{s.name}.basis_{k}", f"{s.name}.eps_{k}")) for k in "AB"}
        uses.append(Use(s.name, LowRank(), reads))
    return Plan(pools, tuple(uses))


def temporary(
    host: Any, tenant: str, name: str, directions: int | None = None, *, rank: int | None = None, labels: Any = None
) -> Any:
    """A task beyond the common's directions: a tenant whose own bases begin as the first of `tenant`'s; all is trained.

    directions: so many of each basis, at most all; none: a quarter. The first are the principal ones where
    `commonweight.commons.import_peft` made the common. rank: none: the old tenant's; at most `directions`.
    The common and its tenants stay as they are. When trained, the tenant joins them as an adapter does:
    `Host.export_peft`, then `import_peft` with the same common, which grows the bases and re-expresses every tenant.
    Source: arXiv 2602.06043, its second and third phase, by two summaries. Raises: CommonweightError when `tenant` is
    no tenant of this method.
    """
    old = host[tenant]
    if not isinstance(old.config, Share):
        raise CommonweightError(f"share: {tenant} is a tenant of {old.method.name}; wanted one of 'share'")
    if directions is not None and directions < 1:
        raise CommonweightError(f"share: directions={directions}; wanted at least 1, or none for a quarter")
    few = {}
    for s in old.sites:
        both = (len(old.pools[f"{s.name}.basis_{slot}"]) for slot in "AB")
        a, b = (min(k, directions or max(1, k // 4)) for k in both)
        few[s.name] = (a, b)
    alike = len(set(few.values())) == 1
    ks = tuple(("*" if alike else escape(site), *k) for site, k in few.items())[: 1 if alike else None]
    config = Share(k=1, rank=old.config.rank if rank is None else rank, ks=ks)
    new = host.add(name, config, sites=lambda site, _: site in few, seed=old.plan.seed, labels=labels)
    with torch.no_grad():
        for site, counts in few.items():
            for slot, k in zip("AB", counts, strict=True):
                new.pools[f"{site}.basis_{slot}"].copy_(old.pools[f"{site}.basis_{slot}"][:k])
    return new
