"""What many tenants of a method cost together, from its plan: nothing is trained, no tensor is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..core import CommonweightError, Plan, Pool, Site
from ..formats import coding
from ..formats.codecs import Codec, Compeft, OneBit, Ordered
from ..formats.codecs.onebit import refuse
from ..methods import Method, plan, resolve


class Cost(NamedTuple):
    """trainable: numbers of the first tenant. own: those of a further one. common: bytes stored once; private: bytes of
    each tenant."""

    label: str
    trainable: int
    own: int
    common: int
    private: int

    def total(self, tenants: int) -> int:
        """Bytes of the pools of so many tenants in one store."""
        return self.common + tenants * self.private


def read_spec(spec: str) -> tuple[str, list[str]]:
    """(method, ["name=value", ...]) of "lotr" or "lotr:rank=16,alpha=32"."""
    name, _, options = spec.partition(":")
    return name, [o for o in options.split(",") if o]


def cost(
    method: str, sites: Sequence[Site], options: Mapping[str, Any] | None = None, codec: Codec | None = None
) -> Cost:
    """What tenants of a method cost on the sites that it takes by default: of its kinds and roles, with widths that its
    options fit. A site does not say whether a convolution keeps its channels apart; such are counted for every method.

    Saved pools of scope "tenant" are counted for each tenant, those of scope "shared" once. If a tenant would have no
    trained pools of its own in a common, all its pools are counted as its own. Pools that are rebuilt cost nothing. A
    method with another stored form is counted in that form, and at its most where only a training tells. Heads and
    manifests (half a KB a tenant) are not counted. codec: for all trainable pools, as in `Host.save`; places that are
    packed beside it are counted at their most.
    Cost: a plan, milliseconds. Raises: CommonweightError for an unknown method or option, and for a codec whose size
    depends on the values.
    """
    found, config = resolve(method, options or {})
    if isinstance(codec, OneBit):
        refuse(found.name, found.levels)
    mine = _read(found.of(config), sites)
    trained = plan(config, mine)
    stored = plan(found.stored(config, mine), mine)
    own, once, each = _numbers(stored, "tenant"), _bytes(stored, "shared", codec), _bytes(stored, "tenant", codec)
    if not own:
        own, once, each = trained.count(), 0, once + each
    return Cost(label(found, options or {}), trained.count(), own, once, each)


def label(method: Method, options: Mapping[str, Any]) -> str:
    return " ".join([method.name, *(f"{k}={v}" for k, v in options.items())])


def _read(method: Method, sites: Sequence[Site]) -> list[Site]:
    """method: with what its config reads and fits."""
    from ..host.sites import fitting

    mine = [s for s in sites if s.kind in method.kinds]
    return fitting(method, [s for s in mine if s.role in method.roles] or mine)


def _numbers(p: Plan, scope: str) -> int:
    return sum(pool.numel for pool in p.pools.values() if pool.train and pool.scope == scope)


def _bytes(p: Plan, scope: str, codec: Codec | None) -> int:
    return sum(_stored(pool, codec) for pool in p.pools.values() if pool.save and pool.scope == scope)


def _stored(pool: Pool, codec: Codec | None) -> int:
    if codec is not None and pool.dtype == Ordered.dtype:
        return coding.most(pool)
    if codec is None or not pool.train or pool.dtype != "float32":
        return pool.nbytes
    if isinstance(codec, Compeft):
        raise CommonweightError("codec compeft: its size depends on what was trained; choose bfloat16, int8 or int4")
    fixed = codec.encode(torch.zeros(0), None).nbytes
    return min(pool.nbytes, fixed - (-pool.numel * (_per_4096(codec) - fixed) // 4096))


def _per_4096(codec: Codec) -> int:
    return codec.encode(torch.zeros(4096), None).nbytes
