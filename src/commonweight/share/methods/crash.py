"""CRaSh: neighbouring layers of like representations are clustered, and the middle layer of each stands for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ...builder import Anatomy, Layout, Unit, Weight, tied
from ...core import CommonweightError, config, option
from .. import surveys
from ..registry import method


@config
class CRaSh:
    clusters: int | None = option(None, "how many clusters the middle layers make; none: half as many as layers", ge=1)
    ends: int = option(2, "layers at each end that are their own (offsite tuning's adapters)", ge=0)
    share_norms: bool = option(True, "norms are the cluster's too; else each depth has its own")
    repeat: bool = option(True, "each depth stays, and repeats its cluster's layer; else one depth a cluster")


def survey(model: Any, rows: Sequence[Any], config: CRaSh) -> dict[str, tuple[float, ...]]:
    """CKA of what each layer and the next one answer."""
    found = surveys.states(model, rows)[1:]
    return {"cka": tuple(surveys.cka(a, b) for a, b in pairwise(found))}


def clusters(alike: Sequence[float], layers: Sequence[int], n: int) -> list[list[int]]:
    """Neighbours merged until n are left, the most alike first. alike[i]: of layers i and i + 1; the last of one
    cluster and the first of the next are always such a pair."""
    found = [[i] for i in layers]
    while len(found) > n:
        best = max(range(len(found) - 1), key=lambda k: (alike[found[k][-1]], -k))
        found[best : best + 2] = [found[best] + found[best + 1]]
    return found


@method(
    "crash",
    CRaSh,
    paper="CRaSh: Clustering, Removing, and Sharing Enhance Fine-tuning, arXiv 2310.15477",
    shares="the layers of a cluster of neighbours",
    survey=survey,
    sizes=lambda depth: [{"clusters": max(1, depth // 2 - 4)}, {"clusters": max(1, depth // 3 - 4)}],
)
def plan(anatomy: Anatomy, config: CRaSh, seen: Mapping[str, tuple[float, ...]]) -> Layout:
    """Every depth of a cluster reads its layer number len // 2. No training is needed.

    Parameters: those of the ends and of one layer for each cluster. As many clusters as layers are the model itself.
    Source: arXiv 2310.15477, section 4; code TsinghuaC3I/CRaSh, utils/main.py.
    """
    depth, ends = anatomy.depth, config.ends
    middle = range(ends, depth - ends)
    n = config.clusters or max(1, depth // 2 - 2 * ends)
    if not 1 <= n <= len(middle):
        raise CommonweightError(f"crash: {n} clusters of {len(middle)} layers between the ends; lower clusters or ends")
    found = [*([i] for i in range(ends)), *clusters(seen["cka"], middle, n), *([i] for i in range(depth - ends, depth))]
    centre = {i: c[len(c) // 2] for c in found for i in c}
    like = list(range(depth)) if config.repeat else [c[len(c) // 2] for c in found]

    def unit(at: int, weight: Weight) -> Unit | None:
        if weight.kind == "norm" and not config.share_norms:
            return None
        return Unit(f"cluster{centre[like[at]]}", (centre[like[at]],))

    return tied(anatomy, like, unit)
