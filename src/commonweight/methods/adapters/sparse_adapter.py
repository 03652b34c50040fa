"""SparseAdapter: of wide adapters only those numbers exist whose absence the loss would feel most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...address import WHOLE, Scatter
from ...bind import Bottleneck as Bind
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Use, config, option
from ..low_rank.lori import Places, largest
from ..registry import method
from ..shown import Statistics
from .bottleneck import placed

_START = Normal(0.02)


@config
class SparseAdapter:
    size: int = option(64, "width r of the bottleneck", ge=1)
    keep: float = option(0.2, "share of the matrices' numbers that exist", gt=0, le=1)
    score: Literal["snip", "magnitude", "grasp", "synflow"] = option(
        "snip",
        "of a number w of any site: snip: |w dL/dw| on rows; magnitude: |w|; grasp: w (H dL/dw), H the Hessian; "
        "synflow: |w| times how it is read by the other matrix's magnitudes",
    )
    act: Literal["relu", "gelu"] = option("relu", "the activation between the two matrices")
    placement: Literal["houlsby", "pfeiffer"] = option(
        "houlsby", "houlsby: every site, by default after attention and feed-forward; pfeiffer: not after attention"
    )
    start: Literal["rows", "random", "dense", "given"] = option(
        "rows", "rows: by score on rows; random: drawn; dense: all numbers; given: what a start from rows becomes"
    )
    kept: tuple[tuple[str, int], ...] = option((), "with start=given: (matrix, number of its entries) pairs")

    def check(self) -> str | None:
        if (self.start == "given") != bool(self.kept):
            return f"start={self.start!r} with {len(self.kept)} kept matrices"
        return None


def _scores(score: str, names: Sequence[str], seen: Statistics) -> dict[str, Tensor]:
    """Of each matrix's numbers; the largest are kept."""
    own = {n: seen[f"{n}="] for n in names}
    if score == "synflow":  # of the sum of U D 1, all at their magnitudes, by each of them, times it
        read = {n: own[n].abs().sum(0) if n.endswith(".up") else own[n].abs().sum(1) for n in names}
        other = {n: f"{n.rpartition('.')[0]}.{'down' if n.endswith('.up') else 'up'}" for n in names}
        return {n: w.abs() * (read[other[n]] if n.endswith(".up") else read[other[n]][:, None]) for n, w in own.items()}
    found = {n: w * seen[n] if score != "magnitude" else w for n, w in own.items()}
    return found if score == "grasp" else {n: v.abs() for n, v in found.items()}


def begin(config: SparseAdapter, sites: Sequence[Site], seen: Statistics) -> tuple[SparseAdapter, dict[str, Tensor]]:
    """The best scores of all matrices together; a matrix that has none of them keeps its best one."""
    names = [n for n in seen if n.endswith((".down", ".up"))]
    scores = _scores(config.score, names, seen)
    at = largest(scores, 1 - config.keep, signed=True)
    values: dict[str, Tensor] = {}
    kept = []
    for n in names:
        places = at.get(n, scores[n].argmax().cpu().view(1).int())
        kept.append((n, len(places)))
        values |= {n: seen[f"{n}="].reshape(-1)[places.long().to(seen[n].device)], f"{n}_places": places}
    return replace(config, start="given", kept=tuple(kept)), values


@method(
    "sparse-adapter",
    SparseAdapter,
    paper="SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters, arXiv 2210.04284",
    formula="keep times the sum over sites of 2 r d_out, and r + d_out a site; a place (4 bytes) with each in the file",
    roles=("attn_out", "down"),
    depthwise=False,
    lr=1e-3,
    fresh="both matrices are drawn: with an up-projection of zeros no number has a score",
    wants=lambda config: ("curvature" if config.score == "grasp" else "twin") if config.start == "rows" else "",
    begin=begin,
    twin=lambda config: replace(config, start="dense"),
    size=("keep", "size"),
)
def plan(sites: Sequence[Site], config: SparseAdapter) -> Plan:
    """y' = y + (U o m_U) act((D o m_D) y + b_D) + b_U, y the layer's output; U and D normal with deviation 0.02.

    Shapes: the kept numbers of D (r, d_out) and U (d_out, r) with their places, b_D (r,), b_U (d_out,). Linear in: U
    and b_U, each alone. Source: arXiv 2210.04284; github.com/Shwai-He/SparseAdapter @b190084, one global scoring before
    training; grasp and synflow as in its pruners.py: of one batch of all rows, and of an adapter alone, whose states
    are ones. Differs: exactly keep of the numbers, and at least one of each matrix; biases start at zero and are not
    pruned; not built are a scale of the branch and rounds of pruning between epochs.
    """
    pools, uses, kept = {}, [], dict(config.kept)
    for s in placed("sparse-adapter", sites, config.placement):
        d, r, reads = s.out, config.size, {}
        for slot, shape in (("down", (r, d)), ("up", (d, r))):
            n = f"{s.name}.{slot}"
            if config.start == "dense":
                pools[n], reads[slot] = Pool(shape, _START), Read(WHOLE, (n,))
                continue
            k = kept[n] if n in kept else max(1, round(config.keep * r * d))
            pools[n], chosen = Pool((k,), _START), config.start != "random"
            pools[f"{n}_places"] = Pool((k,), Places(r * d), train=False, save=chosen, dtype="int32")
            reads[slot] = Read(Scatter(shape), (n, f"{n}_places"))
        for slot, width in (("down_bias", r), ("up_bias", d)):
            pools[f"{s.name}.{slot}"] = Pool((width,), ZEROS)
            reads[slot] = Read(WHOLE, (f"{s.name}.{slot}",))
        uses.append(Use(s.name, Bind(config.act), reads))
    return Plan(pools, tuple(uses))
