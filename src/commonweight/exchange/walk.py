"""Walks along seeded directions: what methods of seeds and scalars share."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..core.directions import move_
from .asks import Ask, Loss, Pools
from .registry import Setting

NOISE = "what travels are numbers along seeded directions; clipping and noise would be of another kind than of pools"
START = "start/"


def uncoded(config: Any, way: str) -> str:
    """Why codecs cannot be."""
    return (
        "what travels are a few numbers along seeded directions, which both sides use to the bit; it has options for "
        "fewer of them"
    )


def seed_of(*parts: Any) -> int:
    """A seed of 63 bits that depends on the parts alone."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def slope(
    pools: Pools, moved: Sequence[str], seed: int, eps: float, batch: int
) -> Generator[Ask, float, tuple[float, float]]:
    """((l(theta + eps z) - l(theta - eps z)) / (2 eps), mean of both losses), on one batch. Cost: two forwards."""
    plus = yield Loss(pools, batch, ((seed, eps),), tuple(moved))
    minus = yield Loss(pools, batch, ((seed, -eps),), tuple(moved))
    return (plus - minus) / (2 * eps), (plus + minus) / 2


def copied(pools: Pools, names: Sequence[str]) -> dict[str, Tensor]:
    """In memory of their own, to walk on."""
    return {n: pools[n].clone() for n in names}


def step_(pools: Mapping[str, Tensor], names: Sequence[str], moves: Sequence[tuple[int, float]]) -> None:
    """The named pools move in place, one after the other."""
    for n in names:
        move_(pools[n], n, moves)


def resting(setting: Setting, start: Pools) -> dict[str, Tensor]:
    """Pools that stay with a client: nothing walks along them."""
    return {n: start[n] for n in setting.private}


def first(setting: Setting, start: Pools) -> dict[str, Tensor]:
    """The first values, as a server keeps them."""
    return {f"{START}{n}": start[n].clone() for n in setting.travels}
