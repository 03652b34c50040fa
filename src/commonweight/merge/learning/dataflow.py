"""Merging in data-flow space: a path through the layers of several models, each input scaled.

Evolutionary Optimization of Model Merging Recipes (arXiv 2403.13187), section 3.2. The layers stay as they are; what is
searched is which of them run, in one fixed order of all of them repeated, and by what each one's input is scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from ...core import CommonweightError
from .search import Point


class Step(NamedTuple):
    """One layer of the path: which model's, which of its layers, and the factor on what comes in."""

    model: int
    layer: int
    scale: float = 1.0


class Scaled(nn.Module):
    """A layer that multiplies its first argument, the hidden states, before it reads them."""

    def __init__(self, layer: nn.Module, scale: float):
        super().__init__()
        self.layer, self.scale = layer, scale

    def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        return self.layer(hidden * self.scale, *args, **kwargs)


def assemble(layers: Sequence[nn.ModuleList], path: Sequence[Step]) -> nn.ModuleList:
    """The path's layers as one list, to be put in place of a model's own (``model.model.layers = assemble(...)``).

    layers: each model's list. The layers are the models' own, not copies, and may occur several times: then they share
    their weights. A model that caches keys and values by layer number must be run without its cache.
    Raises: CommonweightError for an empty path, or a layer that is not there.
    """
    if not path:
        raise CommonweightError("the path is empty; at least one layer must run")
    for s in path:
        if not 0 <= s.model < len(layers) or not 0 <= s.layer < len(layers[s.model]):
            sizes = [len(x) for x in layers]
            raise CommonweightError(f"the path has layer {s.layer} of model {s.model}; the models have {sizes} layers")
    steps = [(layers[s.model][s.layer], s.scale) for s in path]
    return nn.ModuleList([layer if scale == 1.0 else Scaled(layer, scale) for layer, scale in steps])


def path_space(sizes: Sequence[int], repeats: int = 1, scale: tuple[float, float] = (0.5, 1.5)
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """The box that `path_of` reads: for every place, whether it runs (above 0.5) and its scale.

    Differs: the paper has one scale for each pair (layer before, layer now); here one for each place, which is less to
    search.
    """
    places = repeats * sum(sizes)
    return {
        **{f"run.{i}": (0.0, 1.0) for i in range(places)},
        **{f"scale.{i}": scale for i in range(places)},
    }


def path_of(point: Point, sizes: Sequence[int]) -> list[Step]:
    """The path that a point of path_space() describes: model 0's layers, model 1's, ..., and again for each repeat."""
    order = [(m, k) for m, size in enumerate(sizes) for k in range(size)]
    places = sum(name.startswith("run.") for name in point)
    return [Step(*order[i % len(order)], scale=point[f"scale.{i}"]) for i in range(places) if point[f"run.{i}"] > 0.5]


def start_of(sizes: Sequence[int], repeats: int = 1, model: int = 0) -> Point:
    """Where a search starts: one model as it is."""
    order = [m for _ in range(repeats) for m, size in enumerate(sizes) for _ in range(size)]
    first = sum(sizes)
    return {
        **{f"run.{i}": 0.75 if m == model and i < first else 0.25 for i, m in enumerate(order)},
        **{f"scale.{i}": 1.0 for i in range(len(order))},
    }
