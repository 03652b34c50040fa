"""ESFT: of a mixture, the experts to which a task's tokens go are trained, whole, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...core import CommonweightError, Plan, Rng, Site, config, option
from ..registry import method
from ..shown import Statistics
from .full import Full
from .full import plan as full_plan

_SCORES = {"token": "routes", "gate": "gates"}


@config
class ESFT:
    threshold: float = option(
        0.2,
        "share of a layer's routes, or sum of mean gates, that its chosen experts get together, or more",
        gt=0,
        le=1,
    )
    score: Literal["token", "gate"] = option(
        "token", "of an expert: token: the share of routes that it gets; gate: its mean weight over all tokens"
    )
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: by the routes of rows; random: the share is one of experts; given: what a start becomes"
    )
    chosen: tuple[str, ...] = option((), "with start=given: the sites of the chosen experts")

    def check(self) -> str | None:
        if (self.start == "given") != bool(self.chosen):
            return f"start={self.start!r} with {len(self.chosen)} chosen sites"
        return None


def expert(site: str) -> tuple[str, int]:
    """(the layer's experts, the number of one): of `x.experts.3.up` and of `x.experts.up[3]`."""
    found = re.search(r"^(.*?\bexperts)\.(?:.*\[(\d+)\]|(\d+)\b.*)", site)
    if found is None:
        raise CommonweightError(f"esft: {site} does not say which expert it is of; leave it out")
    return found[1], int(found[2] or found[3])


def by_layer(sites: Sequence[Site]) -> dict[str, dict[int, list[str]]]:
    out: dict[str, dict[int, list[str]]] = {}
    for s in sites:
        layer, i = expert(s.name)
        out.setdefault(layer, {}).setdefault(i, []).append(s.name)
    return out


def enough(shares: dict[int, float], threshold: float) -> list[int]:
    """The first experts by their shares whose sum reaches the threshold; the one that crosses it is in."""
    found, total = [], 0.0
    for i in sorted(shares, key=lambda i: (-shares[i], i)):
        found.append(i)
        total += shares[i]
        if total >= threshold - 1e-9:
            break
    return found


def begin(config: ESFT, sites: Sequence[Site], seen: Statistics) -> tuple[ESFT, dict[str, Tensor]]:
    chosen = []
    for experts in by_layer(sites).values():
        shares = {i: seen[names[0]].item() for i, names in experts.items()}
        chosen += [n for i in enough(shares, config.threshold) for n in experts[i]]
    return replace(config, start="given", chosen=tuple(chosen)), {}


@method(
    "esft",
    ESFT,
    paper="Let the Expert Stick to His Last: Expert-Specialized Fine-Tuning for Sparse Architectural LLMs, arXiv "
    "2407.01906",
    formula="sum over layers of 3 d d_e for each chosen expert",
    kinds=("expert",),
    named=(),
    lr=1e-4,
    wants=lambda config: _SCORES[config.score] if config.start == "rows" else "",
    begin=begin,
    size=("threshold",),
)
def plan(sites: Sequence[Site], config: ESFT) -> Plan:
    """w' = w + dw at the experts of each layer that together get `threshold` of the tokens' routes, dw zero at first.

    score="gate": that together have a mean weight of `threshold`, a token's weight of an expert that it does not go to
    being 0. A layer's weights sum to 1 only where the model makes them, and a threshold above their sum takes every
    expert; it is lower than for the other score (0.1 in the paper, as we remember it; its code names none).
    Shapes: dw (d_out, d_in). Source: arXiv 2407.01906; github.com/deepseek-ai/ESFT @579a771. Differs: its script
    divides scores by their sum over layers, where its released ones are shares of a layer, as here. Raises:
    CommonweightError where `chosen` names no site that is there.
    """
    if config.start == "given":
        mine = [s for s in sites if s.name in set(config.chosen)]
    else:
        names = set()
        for layer, experts in by_layer(sites).items():
            order = [sorted(experts)[i] for i in Rng(0, f"esft/{layer}").permutation(len(experts)).tolist()]
            names |= {n for i in order[: max(1, round(config.threshold * len(order)))] for n in experts[i]}
        mine = [s for s in sites if s.name in names]
    if not mine:
        raise CommonweightError(f"esft: none of {len(sites)} sites is among the {len(config.chosen)} that were chosen")
    return full_plan(mine, Full())
