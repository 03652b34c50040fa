"""KAdaptation: sums of Kronecker products of factors of rank one; all layers of a kind share the left ones."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import RowKronecker
from ...bind import LowRank
from ...core import ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import families, method
from ..widths import divides


@config
class KAdaptation:
    terms: int = option(32, "terms t of the sum, and the width of the shared factors", ge=1)
    alpha: float = option(32.0, "numerator of the scale alpha / terms", gt=0)
    dropout: float = option(0.0, "dropout on the input, in training", ge=0, le=0.95)


@method(
    "kadaptation",
    KAdaptation,
    paper="Parameter-efficient Model Adaptation for Vision Transformers, arXiv 2203.16329",
    formula="sum over sites of d_in + d_out, and 2 t^2 for each kind of site",
    roles=("query", "value"),
    unfit=divides("terms"),
    lr=1e-2,
    common="the left factors of each kind of site; its own: the right ones",
    size=("terms",),
)
def plan(sites: Sequence[Site], config: KAdaptation) -> Plan:
    """W' = W + (alpha / t) sum_i (a_i b_i^T) kron (u_i v_i^T), i < t.

    Shapes: a, b (t, t), of a kind of site in all layers (rows a_i, b_i); u (t, d_out / t), v (t, d_in / t) of a site.
    Linear in: each of the four. Computed in factors of rank t: B's columns are a_i kron u_i, A's rows b_i kron v_i.
    Source: arXiv 2203.16329, eqs. (5) to (7); github.com/eric-ai-lab/PEViT @be6fb43. Differs: v begins normal and u at
    zero, where the released code has both at zero, so that neither ever gets a gradient; the value's change has its own
    factors; no shared bias; which modules are changed is for whoever adds the tenant. Ours: the scale, normal starts.
    Raises: where t does not divide a width.
    """
    t, pools, uses = config.terms, {}, []
    for kind, group in families(sites).items():
        a, b = f"kadaptation.{kind}.a", f"kadaptation.{kind}.b"
        for name in (a, b):
            pools[name] = Pool((t, t), Normal(t**-0.5), scope="shared")
        for s in group:
            if s.out % t or s.inp % t:
                raise CommonweightError(
                    f"kadaptation: {s.name}: terms={t} does not divide ({s.out}, {s.inp}); choose a number that "
                    "divides both, or exclude the site"
                )
            u, v = f"{s.name}.u", f"{s.name}.v"
            pools[u], pools[v] = Pool((t, s.out // t), ZEROS), Pool((t, s.inp // t), Normal((s.inp // t) ** -0.5))
            reads = {"A": Read(RowKronecker(), (v, b)), "B": Read(RowKronecker(True), (u, a))}
            uses.append(Use(s.name, LowRank(config.alpha / t, config.dropout), reads))
    return Plan(pools, tuple(uses))
