"""FuseGPT: blocks are removed, and what they held is fused into the weights of their neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...address import Hadamard
from ...bind import Replace
from ...builder import Anatomy, Layout, Mean, tied
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Use, config, kaiming, option
from .. import surveys
from ..registry import method


@config
class FuseGPT:
    remove: int | None = option(None, "blocks that go; none: a quarter of them", ge=1)
    group: int = option(8, "blocks that take part in a fusion, the removed one among them", ge=2)
    rank: int = option(128, "of the update of each weight", ge=1)
    fused: int = option(128, "rank rho of what is taken of each removed weight", ge=1)
    layers: tuple[int, ...] = option((), "the blocks that go, in this order, in place of remove and the survey")


def gone(depth: int, config: FuseGPT) -> int:
    return len(config.layers) or config.remove or max(1, depth // 4)


def survey(model: Any, rows: Sequence[Any], config: FuseGPT) -> dict[str, tuple[float, ...]]:
    """For each block the turn at which it goes; of those that stay, the depth."""
    depth = len(model.get_submodule(surveys.stack(model)))
    turns = {block: turn for turn, block in enumerate(surveys.needless(model, rows, gone(depth, config)))}
    return {"turn": tuple(float(turns.get(i, depth)) for i in range(depth))}


def near(kept: Sequence[int], block: int, group: int) -> list[int]:
    """The others of a group around a block, half of them before it: of [0..9], 5 and 4 these are 3, 4, 6."""
    at = list(kept).index(block)
    start = max(0, min(at - group // 2, len(kept) - group))
    return [b for b in kept[start : start + group] if b != block]


@method(
    "fusegpt",
    FuseGPT,
    paper="FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers, arXiv 2411.14507",
    shares="a removed block's weights, read by its neighbours while they train; afterwards nothing",
    survey=survey,
    surveyed=lambda config: not config.layers,
    healing={"tail": 1},
    sizes=lambda depth: [{"remove": depth - depth // n} for n in (2, 3)],
)
def plan(anatomy: Anatomy, config: FuseGPT, seen: Mapping[str, tuple[float, ...]]) -> Layout:
    """W' = W + B A + sum_j (C_j D_j) o V_j, V_j the weight of a block that is gone, o entry by entry.

    Shapes: C_j (out, rho), D_j (rho, in), A (r, in), B (out, r); W and V_j do not train. B and C begin at zero, so a
    fresh model is the plain removal. `heal` puts W' into plain weights at its end, and the parameters are those of the
    kept blocks (`Layout.settled`); until then W, V and the factors are there too.
    Source: arXiv 2411.14507; code JarvisPei/FuseGPT (fuse_utils.py, run_fusion.py): blocks are chosen one by one by the
    cosine of the last hidden states, groups of 8 with the removed block. Differs: all fusions are trained at once and
    read the original weights, where theirs follow each other; a group at an end is moved inwards; biases and norms
    train as they are, with no part of the removed one's; the loss is that of `heal` with the last hidden states, since
    their KL divergence runs over the batch, and is zero for a batch of one.
    Raises: CommonweightError where no block would be left, and for a block that is not there.
    """
    depth, n = anatomy.depth, gone(anatomy.depth, config)
    removed = list(config.layers) or sorted(range(depth), key=lambda i: (seen["turn"][i], i))[:n]
    if n >= depth:
        raise CommonweightError(f"fusegpt: {n} of {depth} blocks would go; at least one stays")
    if wrong := [i for i in removed if not 0 <= i < depth]:
        raise CommonweightError(f"fusegpt: block {wrong[0]}; the model has blocks 0 to {depth - 1}")
    if len(set(removed)) < len(removed):
        raise CommonweightError(f"fusegpt: layers={list(config.layers)} names a block twice")
    kept, sources = list(range(depth)), dict[int, list[int]]()
    for block in removed:
        for other in near(kept, block, config.group):
            sources.setdefault(other, []).append(block)
        kept.remove(block)
    layout = tied(anatomy, kept, lambda at, weight: None)
    pools, uses = dict(layout.plan.pools), []
    weights = {f"{at}.{w.name}": (like, w) for at, like in enumerate(kept) for w in anatomy.blocks[like]}
    for use in layout.plan.uses:
        like, w = weights[use.site]
        if w.kind != "linear" or like not in sources:
            uses.append(use)
            continue
        (own,) = use.reads["weight"].pools
        r, rho = min(config.rank, *w.shape), min(config.fused, *w.shape)
        pools[own] = Pool(w.shape, Mean((f"{like}.{w.name}",)), train=False, dtype=w.dtype)
        pools[f"{use.site}.A"] = Pool((r, w.inp), kaiming(w.inp), dtype=w.dtype)
        pools[f"{use.site}.B"] = Pool((w.out, r), ZEROS, dtype=w.dtype)
        read = [own, f"{use.site}.A", f"{use.site}.B"]
        for j in sources[like]:
            pools[f"{use.site}.C{j}"] = Pool((w.out, rho), ZEROS, dtype=w.dtype)
            pools[f"{use.site}.D{j}"] = Pool((rho, w.inp), kaiming(w.inp), dtype=w.dtype)
            pools[f"removed{j}.{w.name}"] = Pool(w.shape, Mean((f"{j}.{w.name}",)), train=False, dtype=w.dtype)
            read += [f"{use.site}.C{j}", f"{use.site}.D{j}", f"removed{j}.{w.name}"]
        uses.append(Use(use.site, Replace(), {"weight": Read(Hadamard(w.transposed), tuple(read))}))
    return Layout(layout.like, Plan(pools, tuple(uses), layout.plan.seed))
