"""Data ablations by averaging: what a model trained on a mixture would score, told by averages of models.

Scalable Data Ablation Approximations for Language Models through Modular Training and Merging (arXiv 2410.15661):
one model for each part of a corpus is trained once; each candidate mixture costs one average and one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...core import CommonweightError, unknown
from ..registry import get


class Proxy(NamedTuple):
    """A mixture's parts, and the score of the average of their models."""

    parts: tuple[str, ...]
    score: float


def average(parts: Mapping[str, Any], mixture: Sequence[str], sizes: Mapping[str, float] | None = None
) -> dict[str, Tensor]:  # fmt: skip
    """The average of a mixture's models. sizes: tokens (or rows) of each part, as weights; without them, all the same.

    Differs: the paper's parts are cut to equal size, so that its averages are unweighted.
    """
    if not mixture:
        raise CommonweightError("a mixture has no parts; name at least one")
    for name in mixture:
        if name not in parts:
            raise unknown("part of the data", str(name), parts)
        if sizes is not None and not sizes.get(name, 0) > 0:
            raise CommonweightError(f"{name}: its size is {sizes.get(name)}; wanted a number above 0")
    weights = None if sizes is None else [float(sizes[name]) for name in mixture]
    return get("linear")({name: parts[name] for name in mixture}, weights=weights)


def proxies(
    parts: Mapping[str, Any],
    mixtures: Sequence[Sequence[str]],
    evaluate: Callable[[dict[str, Tensor]], float],
    *,
    sizes: Mapping[str, float] | None = None,
) -> list[Proxy]:
    """Every mixture with its proxy score, in the order given. evaluate(state dict) -> perplexity, or any score.

    Cost: len(mixtures) averages and evaluations; training costs len(parts) models, however many mixtures are asked for.
    """
    return [Proxy(tuple(m), float(evaluate(average(parts, m, sizes)))) for m in mixtures]
