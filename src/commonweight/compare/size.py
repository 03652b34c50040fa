"""What a plan costs on disk, without a tensor of it: its saved pools, as they are or by a codec."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from ..core import Plan, Pool, Site
from ..formats import coding
from ..formats.codecs import Codec, OneBit, Ordered
from ..formats.native import layout
from ..methods import Method, plan, resolve


def stored(method: Method, sites: Sequence[Site], options: dict[str, object]) -> Plan:
    """The plan of what a trained tenant is stored as, at its most; as it trains where nothing tells that."""
    _, config = resolve(method.name, options)
    whole, least = plan(config, sites), plan(method.stored(config, sites), sites)
    return least if least.pools else whole


def nbytes(p: Plan, codec: str | None = None, own: bool = False) -> int:
    """Bytes of the saved pools. own: of those alone that one more tenant of the same common pools brings.

    With a codec whose size depends on the numbers (compeft), the size for numbers drawn from a normal distribution; of
    packed places the most that they take.
    """
    order = layout(p)
    coded = coding.choose(p, order, codec)
    total = 0
    for key, names in order.items():
        pools = [p.pools[n] for n in names]
        if not own or pools[0].scope == "tenant":
            plain = sum(pool.nbytes for pool in pools)
            total += min(plain, _coded(coded[key], pools)) if key in coded else plain
    return total


def _coded(codec: Codec, pools: Sequence[Pool]) -> int:
    if isinstance(codec, Ordered):
        return sum(map(coding.most, pools))
    if isinstance(codec, OneBit):
        return sum(codec.encode(torch.zeros(pool.shape), None).nbytes for pool in pools)
    return _drawn(codec, sum(pool.numel for pool in pools))


@lru_cache(maxsize=4096)
def _drawn(codec: Codec, numel: int) -> int:
    return codec.encode(torch.randn(numel, generator=torch.Generator().manual_seed(0)), None).nbytes
