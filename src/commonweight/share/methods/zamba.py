"""Zamba2's pattern: a few blocks are used again and again, each use with adapters and an output map of its own."""

from __future__ import annotations

from typing import Literal

from ...address import WHOLE
from ...bind import Mapped
from ...builder import Anatomy, Eye, Layout, Unit, Weight, relaxed, tied
from ...core import CommonweightError, Pool, Read, Use, config, option
from ..registry import method


@config
class Zamba:
    blocks: int = option(2, "shared blocks, used in turn", ge=1)
    every: int = option(1, "every such layer is a shared one; the others are their own", ge=1)
    rank: int = option(128, "rank of the adapters of each use; 0: none", ge=0)
    attention: bool = option(False, "adapters on the attention's query, key and value too")
    adapter_init: Literal["svd", "zero"] = option(
        "svd", "svd: of what a layer loses to its block; zero: as LoRA begins"
    )
    output: bool = option(False, "a map (d, d) behind each use, the identity at the start")


@method(
    "zamba",
    Zamba,
    paper="The Zamba2 Suite: Technical Report, arXiv 2411.15242",
    shares="a few blocks, used in turn, with a low-rank adapter for each use",
    sizes=lambda depth: [{"rank": 16}, {"rank": 128}],
)
def plan(anatomy: Anatomy, config: Zamba) -> Layout:
    """x + M_u f(x; block(u) + B_u A_u) at use u, block u mod `blocks`; adapters have no scale. Norms are the block's.

    Source: arXiv 2411.15242, section 2; transformers' zamba2 (adapters on gate and up always, on query, key and value
    with use_shared_attention_adapter). Differs: blocks begin with the mean of the layers they stand for, since the
    model is a pretrained one, so they do not read the embedding beside the hidden state, and no Mamba layers stand
    between.
    """
    depth = anatomy.depth
    shared = [i for i in range(depth) if i % config.every == config.every - 1]
    if len(shared) <= config.blocks:
        raise CommonweightError(
            f"zamba: {config.blocks} blocks for {len(shared)} uses share nothing; lower blocks or every"
        )
    use = {at: n for n, at in enumerate(shared)}
    layers = [tuple(at for at in shared if use[at] % config.blocks == b) for b in range(config.blocks)]

    def unit(at: int, weight: Weight) -> Unit | None:
        return Unit(f"block{use[at] % config.blocks}", layers[use[at] % config.blocks]) if at in use else None

    layout = tied(anatomy, list(range(depth)), unit)
    if config.rank:
        roles = ("gate", "up", *(("query", "key", "value", "qkv") if config.attention else ()))
        layout = relaxed(layout, anatomy, config.rank, config.adapter_init, lambda at, w: at in use and w.role in roles)
    if config.output:
        size, dtype = (anatomy.width,) * 2, anatomy.blocks[0][0].dtype
        pools = {f"output.{at}": Pool(size, Eye(), dtype=dtype) for at in shared}
        layout = layout.plus(pools, [Use(str(at), Mapped(), {"M": Read(WHOLE, (f"output.{at}",))}) for at in shared])
    return layout
