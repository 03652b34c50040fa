"""A layout whose feed-forward networks are one mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence

from ..address import WHOLE
from ..bind import Experts, Replace
from ..builder import Anatomy, Layout, Mean
from ..core import CommonweightError, Normal, Pool, Read, Use


def mixed(name: str, layout: Layout, anatomy: Anatomy, bind: Experts, stretches: Sequence[tuple[int, ...]]) -> Layout:
    """With the mixture at every depth. stretches: for each expert the layers whose mean it begins with.

    Raises: CommonweightError where the feed-forward network of a block is no module of its own (BERT).
    """
    mine = [w for w in anatomy.blocks[0] if w.part == "ffn"]
    home = {w.name.split(".")[0] for w in mine}
    if len(home) != 1 or any(w.kind == "norm" for w in anatomy.blocks[0] if w.name.split(".")[0] in home):
        raise CommonweightError(f"{name}: the feed-forward network of a block must be one module without norms, as mlp")
    (ffn,) = home
    kinds = {tuple((w.name, w.shape) for w in block if w.part == "ffn") for block in anatomy.blocks}
    if len(kinds) > 1:
        raise CommonweightError(f"{name}: this model's blocks are of different kinds, in their feed-forward networks")
    prefix = f"{ffn}."
    uses = [u for u in layout.plan.uses if not u.site.partition(".")[2].startswith(prefix)]
    pools = {n: p for n, p in layout.plan.pools.items() if not n.partition(".")[2].startswith(prefix)}
    pools["router"] = Pool((bind.experts, anatomy.width), Normal(0.02), dtype=mine[0].dtype)
    for at in range(len(layout.like)):
        uses.append(Use(f"{at}.{ffn}", bind, {"router": Read(WHOLE, ("router",))}))
        for e, layers in enumerate(stretches):
            for w in mine:
                pool = f"expert{e}.{w.name}"
                pools[pool] = Pool(w.shape, Mean(tuple(f"{i}.{w.name}" for i in layers)), dtype=w.dtype)
                site = f"{at}.{ffn}.experts.{e}.{w.name.removeprefix(prefix)}"
                uses.append(Use(site, Replace(), {"weight": Read(WHOLE, (pool,))}))
    return Layout(layout.like, layout.plan._replace(pools=pools, uses=tuple(uses)))
