"""Share: every tenant's update is a few combinations of directions that all tenants have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..address import Combine
from ..bind import LowRank
from ..core import ZEROS, Normal, Orthonormal, Plan, Pool, Read, Site, Use, config, option
from .lora import pick
from .registry import method


@config
class Share:
    k: int = option(32, "directions of each basis, and at most the width", ge=1)
    rank: int = option(4, "rank p of a tenant's update, and at most k", ge=1)
    ks: tuple[tuple[str, int, int], ...] = option(
        (), "(pattern, k_A, k_B): other numbers of directions for some sites, first match wins"
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
    Source: arXiv 2602.06043, section 3. Differs: in training together the bases are trained too, where the paper finds
    them in finished adapters; `commonweight.commons.fit` does that.
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
