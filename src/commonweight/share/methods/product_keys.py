"""Product keys: some feed-forward networks become a large memory, one table of values for all of them."""

from __future__ import annotations

from ...bind import ProductKeys as Bind
from ...builder import Anatomy, Layout, tied
from ...core import ZEROS, CommonweightError, Normal, Plan, Pool, Uniform, Use, config, option
from .. import families as fam
from ..registry import method


@config
class ProductKeys:
    layers: tuple[int, ...] = option((), "the layers with a memory; none: the one in the middle")
    n: int = option(128, "keys of each half; the table has n * n values", ge=1)
    heads: int = option(4, "queries of a token", ge=1)
    k: int = option(32, "values that a head reads", ge=1)
    width: int = option(128, "of a key, both halves", ge=2)
    beside: bool = option(False, "beside the feed-forward network, where zero values are the original; else instead")
    seed: int = option(0, "of keys and values", ge=0)

    def check(self) -> str | None:
        if self.width % 2:
            return f"width={self.width} has no halves"
        return f"k={self.k} of {self.n**2} values" if self.k > self.n**2 else None


@method(
    "product_keys",
    ProductKeys,
    paper="Large Memory Layers with Product Keys, arXiv 1907.05242; Memory Layers at Scale, arXiv 2412.09764",
    shares="one table of values between the memory layers, which take the place of feed-forward networks",
    sizes=lambda depth: [{"layers": tuple(range(1, depth, 3)), "n": 128}],
)
def plan(anatomy: Anatomy, config: ProductKeys) -> Layout:
    """y = sum over heads, and the k best of n^2 keys, of softmax(score) value; the search is exact.

    Shapes: see the bind. Parameters: n^2 d once, and 2 heads n c / 2 + heads c (d + 1) for each layer with a memory.
    Source: arXiv 1907.05242, section 3; the shared table arXiv 2412.09764; code facebookresearch/memory (its default
    without batch norm). Init as there: keys U(-c^-1/2, c^-1/2), values N(0, d^-1/2), or zero where the memory
    stands beside. Differs: no SwiLU gate behind it; sizes are smaller by default (there n = 1024, width 512); values
    have the learning rate of the rest, where the code has 1e-3.
    Raises: CommonweightError where the feed-forward network of a block is no module of its own (BERT).
    """
    depth, d = anatomy.depth, anatomy.width
    layers = config.layers or (depth // 2,)
    if wrong := [at for at in layers if not 0 <= at < depth]:
        raise CommonweightError(f"product_keys: layer {wrong[0]}; the model has {depth} layers, counted from 0")
    mine = [w for w in anatomy.blocks[0] if w.part == "ffn"]
    home = {w.name.split(".")[0] for w in mine}
    if len(home) != 1 or any(w.kind == "norm" for w in anatomy.blocks[0] if w.name.split(".")[0] in home):
        raise CommonweightError(
            "product_keys: the feed-forward network of a block must be one module without norms, as mlp"
        )
    (ffn,) = home
    dtype, c = mine[0].dtype, config.width
    pools = {"values": Pool((config.n**2, d), ZEROS if config.beside else Normal(d**-0.5), dtype=dtype)}
    uses = []
    for at in layers:
        own = {
            "query": Pool((config.heads * c, d), Normal(d**-0.5), dtype=dtype),
            "query_bias": Pool((config.heads * c,), ZEROS, dtype=dtype),
            "keys": Pool((2, config.heads, config.n, c // 2), Uniform(c**-0.5), dtype=dtype),
        }
        pools |= {f"{at}.{n}": p for n, p in own.items()}
        slots = {n: f"{at}.{n}" for n in own} | {"values": "values"}
        uses.append(Use(f"{at}.{ffn}", Bind(config.heads, config.k, config.beside), fam.whole(**slots)))
    whole = tied(anatomy, range(depth), lambda at, w: None, config.seed)
    gone = () if config.beside else tuple(f"{at}.{ffn}." for at in layers)
    kept = [u for u in whole.plan.uses if not u.site.startswith(gone)] if gone else list(whole.plan.uses)
    read = {n for u in kept for r in u.reads.values() for n in r.pools}
    own = {n: p for n, p in whole.plan.pools.items() if n in read}
    return Layout(whole.like, Plan({**own, **pools}, (*kept, *uses), config.seed))
