"""LoKr: the Kronecker product of a small matrix and a larger one, which may itself be of low rank."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import Kron
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method


@config
class LoKr:
    rank: int = option(8, "rank r of the factors that are split in two", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)
    factor: int = option(-1, "side of the left factor where it divides a width; -1: as near the square root", ge=-1)
    both: bool = option(False, "split the left factor too, where r is less than half of its longer side")

    def check(self) -> str | None:
        return "factor is 0; choose -1, or a divisor of the widths" if self.factor == 0 else None


def split(width: int, factor: int = -1) -> tuple[int, int]:
    """(m, n) with m n = width and m <= n: as near the square root as divisors allow, m at most `factor` where given;
    (factor, width / factor) where it divides."""
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    most = width if factor == -1 else factor
    m, n = 1, width
    while m < n:
        larger = next(d for d in range(m + 1, width + 1) if width % d == 0)
        if larger + width // larger > m + n or larger > most:
            break
        m, n = larger, width // larger
    return min(m, n), max(m, n)


@method(
    "lokr",
    LoKr,
    paper="Navigating Text-To-Image Customization (LyCORIS), arXiv 2309.14859",
    formula="sum over sites of a b + r (c + d), or a b + c d where r is large; a c = d_out, b d = d_in",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: LoKr) -> Plan:
    """W' = W + (alpha / r) L kron R, L (a, b) zero at the start, R (c, d) = R_a R_b where that is smaller.

    Shapes: a c = d_out, b d = d_in, the sides by `split`; R_a (c, r), R_b (r, d); with both, L_a (a, r), L_b (r, b).
    Linear in: each factor alone. Cost: T d_in (c + a c / d) products; no dense weight, also in a mixed batch.
    Source: arXiv 2309.14859, section 3; sides, start and scale as PEFT 0.21.2 (decompose_factor, decompose_both).
    Differs: convolutions are matrices; no dropout.
    """
    r, pools, uses = config.rank, {}, []
    bind = Kron(1.0 if config.alpha is None else config.alpha / r)
    for s in sites:
        (a, c), (b, d) = split(s.out, config.factor), split(s.inp, config.factor)
        mine: dict[str, Pool] = {}
        if config.both and 2 * r < max(a, b):
            mine |= {"L_a": Pool((a, r), ZEROS), "L_b": Pool((r, b), kaiming(b))}
        else:
            mine["L"] = Pool((a, b), ZEROS)
        if 2 * r < max(c, d):
            mine |= {"R_a": Pool((c, r), kaiming(r)), "R_b": Pool((r, d), kaiming(d))}
        else:
            mine["R"] = Pool((c, d), kaiming(d))
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
