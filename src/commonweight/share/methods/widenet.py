"""WideNet: one attention and one mixture of experts at every depth, norms each depth's own."""

from __future__ import annotations

from itertools import pairwise

from ...address import WHOLE
from ...bind import Experts, Replace
from ...builder import Anatomy, Layout, Mean, Unit, Weight, tied
from ...core import CommonweightError, Normal, Pool, Read, Use, config, option
from .. import maps
from ..registry import method


@config
class WideNet:
    experts: int = option(4, "experts E of the one mixture", ge=1)
    k: int = option(2, "experts that a token takes", ge=1)
    capacity: float = option(1.2, "an expert takes int(T capacity k / E) of T tokens", gt=0)
    seed: int = option(0, "of the router's first numbers", ge=0)

    def check(self) -> str | None:
        return f"k={self.k} of {self.experts} experts" if self.k > self.experts else None


@method(
    "widenet",
    WideNet,
    paper="Go Wider Instead of Deeper, arXiv 2107.11817",
    shares="one attention and one mixture of experts at every depth",
    sizes=lambda depth: [{"experts": 4}, {"experts": 8}],
)
def plan(anatomy: Anatomy, config: WideNet) -> Layout:
    """y = x + att(norm_l x); y + sum over k of E experts of p_e ffn_e(norm'_l y): the router is shared as well.

    Parameters: one attention, E feed-forward networks, E d, and the norms. E = k = 1 with capacity >= 1 is the tied
    layer with norms of its own. Source: arXiv 2107.11817; code XueFuzhao/WideNet_Code. Differs: expert e begins with
    the mean of the e-th stretch of the pretrained layers, the attention with the mean of all; there is no balancing
    loss.
    Raises: CommonweightError where the feed-forward network of a block is no module of its own (BERT).
    """
    depth = anatomy.depth
    everywhere = tuple(range(depth))
    mine = [w for w in anatomy.blocks[0] if w.part == "ffn"]
    home = {w.name.split(".")[0] for w in mine}
    if len(home) != 1 or any(w.kind == "norm" for w in anatomy.blocks[0] if w.name.split(".")[0] in home):
        raise CommonweightError("widenet: the feed-forward network of a block must be one module without norms, as mlp")
    (ffn,) = home
    cuts = [depth * e // config.experts for e in range(config.experts + 1)]
    stretches = [tuple(range(a, max(a + 1, b))) for a, b in pairwise(cuts)]

    def unit(at: int, weight: Weight) -> Unit | None:
        return None if weight.kind == "norm" else Unit("all", everywhere)

    whole = tied(anatomy, maps.spaced(0, depth - 1, depth), unit, config.seed)
    prefix = f"{ffn}."
    uses = [u for u in whole.plan.uses if not u.site.partition(".")[2].startswith(prefix)]
    pools = {n: p for n, p in whole.plan.pools.items() if not n.partition(".")[2].startswith(prefix)}
    pools["router"] = Pool((config.experts, anatomy.width), Normal(0.02), dtype=mine[0].dtype)
    bind = Experts(config.experts, config.k, config.capacity)
    for at in range(depth):
        uses.append(Use(f"{at}.{ffn}", bind, {"router": Read(WHOLE, ("router",))}))
        for e, layers in enumerate(stretches):
            for w in mine:
                pool = f"expert{e}.{w.name}"
                pools[pool] = Pool(w.shape, Mean(tuple(f"{i}.{w.name}" for i in layers)), dtype=w.dtype)
                site = f"{at}.{ffn}.experts.{e}.{w.name.removeprefix(prefix)}"
                uses.append(Use(site, Replace(), {"weight": Read(WHOLE, (pool,))}))
    plan = whole.plan._replace(pools=pools, uses=tuple(uses))
    return Layout(whole.like, plan)
