"""ParScale: one model runs several times for each row, behind prefixes that differ, and the results are weighed."""

from __future__ import annotations

from ...bind import Gathered, Prefixes, Streams
from ...builder import Anatomy, Layout, tied
from ...core import ZEROS, CommonweightError, Normal, Pool, Use, config, kaiming, option
from .. import families as fam
from ..registry import method


@config
class ParScale:
    streams: int = option(2, "times P that the model runs for each row; 1: as it is", ge=1)
    tokens: int = option(48, "keys and values in front of each stream, in every layer", ge=0)
    smooth: float = option(0.01, "share of the plain mean in the weights of the streams", ge=0, le=1)
    std: float = option(0.02, "of the first keys and values", ge=0)
    seed: int = option(0, "of the first values", ge=0)


@method(
    "parscale",
    ParScale,
    paper="Parallel Scaling Law for Language Models, arXiv 2505.10475",
    shares="all weights between the streams of one input",
    sizes=lambda depth: [{"streams": 2}, {"streams": 4}],
)
def plan(anatomy: Anatomy, config: ParScale) -> Layout:
    """y = sum_i a_i f(x; prefix_i), i of P streams; a = softmax of a small network on the P last states.

    Shapes: see the binds. Parameters: those of the model, 2 L P tokens kv for the prefixes, P d^2 + d + d P + P for
    the weights. FLOPs and cache: P times those of the blocks. With one stream, or without prefixes, it is the original.
    Prefixes carry no position and positions of tokens stay. Streams stand on the rows of a cache: beams end in an
    error, as do static and paged caches. Source: arXiv 2505.10475; code QwenLM/ParScale. Differs: the first values of
    prefixes and of the network are ours; a prefix's own queries, which theirs has in prefill and throws away, are not
    made.
    Raises: CommonweightError for a model whose attention has no keys and values of its own, no cache, windows or a bias
    by position, and for one without a last norm.
    """
    anatomy.masked("parscale")
    if not {"past_key_values", "layer_past"} & set(anatomy.takes):
        raise CommonweightError("parscale: these blocks read no cache of keys and values, in which prefixes stand")
    depth, n = anatomy.depth, config.streams
    layout = tied(anatomy, range(depth), lambda at, weight: None, config.seed)
    if n == 1:
        return layout
    pools: dict[str, Pool] = {}
    uses = [Use("0", Streams(n), {})]
    for at in range(depth):
        home, kv, dtype = attention(anatomy, at)
        slots = {}
        if config.tokens:
            slots = {name: f"{at}.{home}.{name}" for name in ("keys", "values")}
            pools |= {pool: Pool((n, config.tokens, kv), Normal(config.std), dtype=dtype) for pool in slots.values()}
        uses.append(Use(f"{at}.{home}", Prefixes(n), fam.whole(**slots)))
    d, dtype = anatomy.width, anatomy.blocks[0][0].dtype
    mix = {
        "W1": Pool((d, d * n), kaiming(d * n), dtype=dtype), "b1": Pool((d,), ZEROS, dtype=dtype),
        "W2": Pool((n, d), kaiming(d), dtype=dtype), "b2": Pool((n,), ZEROS, dtype=dtype),
    }  # fmt: skip
    pools |= {f"mix.{k}": p for k, p in mix.items()}
    uses.append(Use(f".{last_norm(anatomy)}", Gathered(n, config.smooth), fam.whole(**{k: f"mix.{k}" for k in mix})))
    return layout.plus(pools, uses)


def attention(anatomy: Anatomy, at: int) -> tuple[str, int, str]:
    """(name of a block's attention, numbers of a token's keys there, dtype)."""
    by_role = {w.role: w for w in anatomy.blocks[at] if w.kind == "linear"}
    if (key := by_role.get("key")) is not None:
        home, kv = key.module, key.out
    elif (key := by_role.get("qkv")) is not None and key.out == 3 * anatomy.width:
        home, kv = key.module, anatomy.width
    else:
        raise CommonweightError("parscale: wanted an attention with keys and values of every head; this model has none")
    return home.rpartition(".")[0], kv, key.dtype


def last_norm(anatomy: Anatomy) -> str:
    """The norm behind the blocks, beside their list."""
    beside = anatomy.path.rpartition(".")[0]
    found = [w.name.rpartition(".")[0] for w in anatomy.rest if w.kind == "norm"]
    found = [n for n in dict.fromkeys(found) if n.rpartition(".")[0] == beside]
    if not found:
        raise CommonweightError("parscale: the model has no norm behind its blocks, where streams could be weighed")
    return found[-1]
