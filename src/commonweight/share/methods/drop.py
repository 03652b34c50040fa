"""Layers left out: the plain baseline of sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from ...builder import Anatomy, Layout, tied
from ...core import CommonweightError, config, option
from .. import maps, surveys
from ..registry import method


@config
class Drop:
    keep: int | None = option(None, "how many layers stay; none: half of them", ge=1)
    which: Literal["spaced", "first", "influence"] = option(
        "spaced",
        "spaced: at equal steps; first: the first ones and the last; influence: those that change most",
    )
    layers: tuple[int, ...] = option((), "the layers that stay, in order, in place of keep and which")


def survey(model: Any, rows: Sequence[Any], config: Drop) -> dict[str, tuple[float, ...]]:
    found = surveys.states(model, rows)
    return {"influence": tuple(surveys.influence(a, b) for a, b in pairwise(found))}


@method(
    "drop",
    Drop,
    paper="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, arXiv 2403.03853",
    shares="nothing: layers are left out",
    survey=survey,
    surveyed=lambda config: config.which == "influence" and not config.layers,
    sizes=lambda depth: [{"keep": max(1, depth // n)} for n in (2, 3)],
)
def plan(anatomy: Anatomy, config: Drop, seen: Mapping[str, tuple[float, ...]]) -> Layout:
    """The kept layers in their order; each is its own. Parameters: those of the kept layers.

    Source: influence is arXiv 2403.03853, eq. (1), of all blocks at once; the other choices are plain."""
    depth = anatomy.depth
    n = config.keep or depth // 2
    if config.layers:
        like = list(config.layers)
        if wrong := [i for i in like if not 0 <= i < depth]:
            raise CommonweightError(f"drop: layers names {wrong[0]}; the model has layers 0 to {depth - 1}")
    elif n > depth:
        raise CommonweightError(f"drop: keep={n}; the model has {depth} layers")
    elif config.which == "influence":
        most = sorted(range(depth), key=lambda i: (-seen["influence"][i], i))[:n]
        like = sorted(most)
    else:
        like = maps.spaced(0, depth - 1, n) if config.which == "spaced" else [*range(n - 1), depth - 1]
    return tied(anatomy, like, lambda at, weight: None)
