"""Factors that begin somewhere, and a frozen twin of each that takes the start away again."""

from __future__ import annotations

from collections.abc import Mapping

from ...address import WHOLE
from ...core import Init, Pool, Read


def twins(site: str, starts: Mapping[str, tuple[tuple[int, ...], Init]]) -> tuple[dict[str, Pool], dict[str, Read]]:
    """starts: {slot: (shape, init)} -> the pools of `bind.Anchored` and its reads: a slot, and the same with a 0.

    The twin is made again from the init, and is in no file.
    """
    pools: dict[str, Pool] = {}
    for k, (shape, init) in starts.items():
        pools[f"{site}.{k}"] = Pool(shape, init)
        pools[f"{site}.{k}0"] = Pool(shape, init, train=False, save=False)
    slots = [*starts, *(f"{k}0" for k in starts)]
    return pools, {k: Read(WHOLE, (f"{site}.{k}",)) for k in slots}
