"""Subformer's sandwich: the middle layers are one, norms and both ends their own."""

from __future__ import annotations

from typing import Literal

from ...builder import Anatomy, Layout, Unit, Weight, relaxed, tied
from ...core import CommonweightError, config, option
from .. import ends as tokens
from ..registry import method


@config
class Subformer:
    ends: int = option(1, "layers at each end that are their own", ge=0)
    init: Literal["average", "middle", "first"] = option(
        "average", "the middle layer begins with: the mean, the middle or first of them"
    )
    reduction: int | None = option(
        None, "width of the table of tokens, at the input and at the output (SAFE's); none: the model's", ge=1
    )
    relax: int = option(0, "rank of an update for each layer, as relaxed recursion has it; 0: none", ge=0)


@method(
    "subformer",
    Subformer,
    paper="Subformer: Exploring Weight Sharing for Parameter Efficiency in Generative Transformers, arXiv 2101.00234",
    shares="all layers but the first and the last; norms are each layer's own",
    sizes=lambda depth: [{}, {"relax": 16}, {"reduction": 128}],
)
def plan(anatomy: Anatomy, config: Subformer) -> Layout:
    """layers[ends : -ends] read one layer's attention and feed-forward weights.

    Parameters: 2 ends + 1 layers, and 2 d for the norms of each; with a reduction r the table of a tied model has V r,
    and its two maps 2 r d. Source: arXiv 2101.00234, section 3.1; the official code shares with the first of them,
    `init=first` here. Differs: a wider middle (`sandwich_embed_dim`) is a model trained from scratch, and not made;
    of its factorised embedding (SAFE) the narrow table and the two maps are here, begun with the SVD of the pretrained
    table, but not the transformer layer of width r between the table and its map, which would want a place of its own
    in the cache. Where the output is not tied, the input alone is narrow.
    """
    depth, ends = anatomy.depth, config.ends
    middle = list(range(ends, depth - ends))
    if not middle:
        raise CommonweightError(f"subformer: ends={ends} leaves no middle of {depth} layers")
    layers = {"average": middle, "middle": [middle[len(middle) // 2]], "first": middle[:1]}[config.init]

    def unit(at: int, weight: Weight) -> Unit | None:
        return Unit("middle", tuple(layers)) if at in middle and weight.kind != "norm" else None

    layout = tied(anatomy, list(range(depth)), unit)
    layout = relaxed(layout, anatomy, config.relax) if config.relax else layout
    if config.reduction is not None:
        layout = tokens.thin(layout, anatomy, config.reduction, "subformer", head=tokens.tied(anatomy))
    return layout
