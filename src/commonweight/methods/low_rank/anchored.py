"""Factors that begin somewhere, and a frozen twin of each that takes the start away again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...address import WHOLE
from ...bind import Anchored
from ...core import ZEROS, Init, Plan, Pool, Read, Site, Use, kaiming


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


def started(sites: Sequence[Site], rank: int, scale: float, begun: bool) -> Plan:
    """w' = w + scale * (B A - B0 A0) where A0 and B0 were worked out from rows and lie in the file.

    begun: False is a start without rows, that of LoRA: A0 and B0 are zero and in no file.
    """
    pools: dict[str, Pool] = {}
    uses = []
    for site in sites:
        a, b = f"{site.name}.A", f"{site.name}.B"
        pools[a], pools[b] = Pool((rank, site.inp), kaiming(site.inp)), Pool((site.out, rank), ZEROS)
        reads = {"A": Read(WHOLE, (a,)), "B": Read(WHOLE, (b,))}
        for k, of in (("A0", a), ("B0", b)):
            pools[f"{site.name}.{k}"] = replace(pools[of], init=ZEROS, train=False, save=begun)
            reads[k] = Read(WHOLE, (f"{site.name}.{k}",))
        uses.append(Use(site.name, Anchored(scale), reads))
    return Plan(pools, tuple(uses))
