"""DiffuseKronA: the Kronecker product of two small matrices beside every weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import Kron
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import method


@config
class DiffuseKronA:
    a1: int = option(64, "rows of A; in a width that it does not divide, the next smaller divisor", ge=1)
    a2: int = option(8, "columns of A; the same", ge=1)
    scale: float = option(1.0, "factor on the update", gt=0)
    compat: Literal["paper", "official"] = option(
        "paper", "official: the released layer's order of outputs, row j b_1 + i of the product as row i a_1 + j"
    )


def side(width: int, most: int) -> int:
    """The largest divisor of a width that is at most `most`."""
    return next(d for d in range(min(width, most), 0, -1) if width % d == 0)


@method(
    "diffusekrona",
    DiffuseKronA,
    paper="DiffuseKronA: A Parameter Efficient Fine-tuning Method for Personalized Diffusion Models, arXiv 2402.17412",
    formula="sum over sites of a1 a2 + d_out d_in / (a1 a2)",
    depthwise=False,
    lr=1e-3,
    size=(),
)
def plan(sites: Sequence[Site], config: DiffuseKronA) -> Plan:
    """W' = W + s A kron B, A (a1, a2) normal with deviation 1 / a1, B (d_out / a1, d_in / a2) zero at the start.

    Linear in: A and B, each alone. Cost: T d_in (b1 + b1 a1 / b2) products; no dense weight, also in a mixed batch.
    Source: arXiv 2402.17412, section 3.2; github.com/IBM/DiffuseKronA @6c24fc5 (krona.py). compat="official" permutes
    the rows as that file's reshaping does; it is neither A kron B nor B kron A. Differs: sides that divide the width
    for any width; `lokr` is the same product with sides of its own choice and factors of low rank.
    """
    pools, uses = {}, []
    bind = Kron(config.scale, config.compat == "official")
    for s in sites:
        a1, a2 = side(s.out, config.a1), side(s.inp, config.a2)
        pools[f"{s.name}.A"] = Pool((a1, a2), Normal(1 / a1))
        pools[f"{s.name}.B"] = Pool((s.out // a1, s.inp // a2), ZEROS)
        uses.append(Use(s.name, bind, {"L": Read(WHOLE, (f"{s.name}.A",)), "R": Read(WHOLE, (f"{s.name}.B",))}))
    return Plan(pools, tuple(uses))
