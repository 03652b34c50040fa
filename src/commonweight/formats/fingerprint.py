"""Fingerprints: of the weights that a tenant's sites read, the same from a host and from a checkpoint on disk; and of
the pools that are made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..core import Plan, Rng, Site

_READ = {"linear", "expert", "router", "norm"}


def of_weights(sites: Sequence[Site], values: Callable[[Site, Tensor], Tensor]) -> str:
    """32 hex digits of 16 numbers of every site's weight, rounded to bfloat16: copies in float32 and in bfloat16 agree.

    values(site, places (16,)): the numbers at these places of the site's weight (out, inp), row after row. Unlike
    `Host.fingerprint` it knows nothing of embeddings and of other layers, and needs no model to be made again.
    """
    h = hashlib.blake2b(digest_size=16)
    for site in sites:
        if site.kind in _READ:
            h.update(f"{site.name}{(site.out, site.inp)}".encode())
            found = values(site, spread(16, site.out * site.inp)).detach().cpu()
            h.update(found.float().bfloat16().view(torch.int16).numpy().tobytes())
    return h.hexdigest()


def spread(count: int, among: int) -> Tensor:
    """(count,) places among so many numbers, a large odd step apart."""
    return torch.arange(1, count + 1, dtype=torch.int64) * 2654435761 % max(among, 1)


def tells(site: Site) -> bool:
    """Whether `of_weights` reads a matrix there; norms are often alike in models of one family."""
    return site.kind in _READ and site.inp > 1


def of_derived(plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    """For every pool derived from the base, not saved and to be checked: its product with random signs over its norm.

    An SVD on another machine may turn or mix singular vectors; that would be a silent wrong answer.
    """
    out = []
    for name, pool in plan.pools.items():
        if not pool.save and getattr(pool.init, "derived", False) and getattr(pool.init, "checked", True):
            value = pools[name].detach().cpu().double()
            sign = Rng(0, name).signs(tuple(value.shape)).double()
            out.append(((value * sign).sum() / value.norm().clamp(min=1e-30)).item())
    return torch.tensor(out, dtype=torch.float32)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two fingerprints of derived pools are of the same numbers, made on any machine."""
    return bool((a - b).abs().max() <= 1e-2) if a.numel() else True
