"""MobiLlama: one feed-forward network in all layers; attention and norms stay each layer's own."""

from __future__ import annotations

from typing import Literal

from ...builder import Anatomy, Layout, Unit, Weight, relaxed, tied
from ...core import CommonweightError, config, option
from .. import maps
from ..registry import method


@config
class MobiLlama:
    part: Literal["ffn", "attention"] = option("ffn", "what is shared: the feed-forward networks, or the attentions")
    groups: int = option(1, "how many of them there are; each stands for a stretch of neighbouring layers", ge=1)
    init: Literal["average", "stepwise"] = option(
        "average", "the mean of the layers, or the layer in the middle of them"
    )
    relax: int = option(0, "rank of an update for each layer, as relaxed recursion has it; 0: none", ge=0)


@method(
    "mobillama",
    MobiLlama,
    paper="MobiLlama: Towards Accurate and Lightweight Fully Transparent GPT, arXiv 2402.16840",
    shares="the feed-forward network of all layers",
    sizes=lambda depth: [{}, {"relax": 16}],
)
def plan(anatomy: Anatomy, config: MobiLlama) -> Layout:
    """x + att_l(norm x), then + ffn(norm' x) with one ffn. Parameters: 3 d m once, and all attentions and norms.

    Source: arXiv 2402.16840, section 3; code mbzuai-oryx/MobiLlama. Differs: the paper trains from scratch; the mean of
    a pretrained model's layers, and groups and updates, are ours.
    """
    depth = anatomy.depth
    if config.groups > depth:
        raise CommonweightError(f"mobillama: groups={config.groups}; the model has {depth} layers")
    group = [i * config.groups // depth for i in range(depth)]

    def unit(at: int, weight: Weight) -> Unit | None:
        if weight.part != config.part:
            return None
        layers = [i for i in range(depth) if group[i] == group[at]]
        return Unit(
            f"{config.part}{group[at]}", tuple(layers) if config.init == "average" else (layers[len(layers) // 2],)
        )

    layout = tied(anatomy, maps.spaced(0, depth - 1, depth), unit)
    return relaxed(layout, anatomy, config.relax) if config.relax else layout
