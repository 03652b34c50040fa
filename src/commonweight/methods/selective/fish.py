"""FISH mask: the entries of all weights whose Fisher information is largest are trained, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...address import Scatter
from ...bind import Shift
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, option
from ..low_rank.lori import Places, largest
from ..registry import method
from ..shown import Statistics


@config
class FISH:
    ratio: float = option(0.005, "share of the weights' entries that are trained", gt=0, le=1)
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: the largest squared gradients of rows; random: drawn; given: what a start from rows becomes"
    )
    kept: tuple[tuple[str, int], ...] = option((), "with start=given: (site, number of its entries) pairs")

    def check(self) -> str | None:
        if (self.start == "given") != bool(self.kept):
            return f"start={self.start!r} with {len(self.kept)} kept sites; host.add(..., rows=...) makes such a config"
        return None


def begin(config: FISH, sites: Sequence[Site], seen: Statistics) -> tuple[FISH, dict[str, Tensor]]:
    """F = sum over rows of (d loss / d w)^2; the largest entries of all sites together. Ties go to the earlier site."""
    at = largest({s.name: seen[s.name] for s in sites}, 1 - config.ratio)
    kept = tuple((n, len(places)) for n, places in at.items())
    return replace(config, start="given", kept=kept), {f"{n}.places": p for n, p in at.items()}


@method(
    "fish",
    FISH,
    paper="Training Neural Networks with Fixed Sparse Masks, arXiv 2111.09839",
    formula="ratio times the sum over sites of d_in d_out; the file holds a place (4 bytes) with each number",
    lr=2e-3,
    wants=lambda config: "squared" if config.start == "rows" else "",
    begin=begin,
    size=("ratio",),
)
def plan(sites: Sequence[Site], config: FISH) -> Plan:
    """w' = w + dw, dw zero but at the kept places. Shapes: v (k,), places (k,) into the flat weight (d_out, d_in).

    Linear in: v. Cost: one scatter and one addition of a weight in every pass. Source: arXiv 2111.09839, eq. (3);
    github.com/varunnair18/FISH @b5bff1e ("label-square"). Differs: entries of the sites alone, norms and biases by
    their own methods; a head is trained whole and not counted in the ratio.
    """
    pools, uses, kept = {}, [], dict(config.kept)
    for s in sites:
        k = kept.get(s.name, 0) if config.start == "given" else max(1, round(config.ratio * s.out * s.inp))
        if not k:
            continue
        v, at = f"{s.name}.v", f"{s.name}.places"
        pools[v] = Pool((k,), ZEROS)
        pools[at] = Pool((k,), Places(s.out * s.inp), train=False, save=config.start != "random", dtype="int32")
        uses.append(Use(s.name, Shift(), {"dw": Read(Scatter((s.out, s.inp)), (v, at))}))
    return Plan(pools, tuple(uses))
