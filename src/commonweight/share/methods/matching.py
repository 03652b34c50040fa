"""Gradient matching: which layers share a unit is said by the gradients that they would give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...builder import Anatomy, Layout, Unit, Weight, build, relaxed, tied
from ...builder.dissect import anatomy as anatomy_of
from ...core import CommonweightError, config, option
from .. import splitting
from ..registry import method


@config
class Matching:
    units: int | None = option(None, "how many units are left in the end; none: half as many as layers", ge=1)
    share_norms: bool = option(False, "norms are the unit's too; else each depth has its own")
    relax: int = option(0, "rank of an update for each layer; 0: none", ge=0)


def survey(model: Any, rows: Sequence[Any], config: Matching) -> dict[str, tuple[float, ...]]:
    """Distances of the gradients that each depth gives to one layer, the mean of all, which all of them read."""
    about = anatomy_of(model)
    small = build(model, _tied(about, {d: tuple(range(about.depth)) for d in range(about.depth)}, config.share_norms))
    found = splitting.distances(splitting.gradients(small, rows))
    return {f"apart.{i}": tuple(row) for i, row in enumerate(found)}


@method(
    "matching",
    Matching,
    paper="Generalizing Few-Shot NAS with Gradient Matching, arXiv 2203.15207",
    shares="layers whose gradients agree",
    survey=survey,
    sizes=lambda depth: [{"units": max(1, depth // n)} for n in (2, 3)],
)
def plan(anatomy: Anatomy, config: Matching, seen: Mapping[str, tuple[float, ...]]) -> Layout:
    """One unit for all layers is split in two, and one of the parts again, until `units` are left.

    The distance of two readers is 1 - cos of their gradients by the shared layer; a part is split where the sum of
    distances within the halves is least; the part whose split gains most is the next one. A model that is already in
    training is split by `share.splitting.split`. Parameters: `units` layers, and norms. units = depth is the original.
    Source: arXiv 2203.15207, section 3; code skhu101/GM-NAS. Differs: readers are depths of one model, not operations
    of an edge; it is split without training in between; all partitions of up to 16 readers are tried, of more those
    between neighbours (ours).
    """
    n = config.units or max(1, anatomy.depth // 2)
    if n > anatomy.depth:
        raise CommonweightError(f"matching: {n} units of {anatomy.depth} layers")
    apart = [seen[f"apart.{i}"] for i in range(anatomy.depth)]
    parts = [list(range(anatomy.depth))]
    while len(parts) < n:
        found = [(splitting.partition(p, apart), p) for p in parts if len(p) > 1]
        (_, first, second), whole = max(found, key=lambda one: one[0][0])
        parts[parts.index(whole) : parts.index(whole) + 1] = [first, second]
    layout = _tied(anatomy, {d: tuple(p) for p in parts for d in p}, config.share_norms)
    return relaxed(layout, anatomy, config.relax) if config.relax else layout


def _tied(anatomy: Anatomy, part: Mapping[int, tuple[int, ...]], norms: bool) -> Layout:
    def unit(at: int, weight: Weight) -> Unit | None:
        if weight.kind == "norm" and not norms:
            return None
        return Unit(f"unit{part[at][0]}", part[at])

    return tied(anatomy, range(anatomy.depth), unit)
