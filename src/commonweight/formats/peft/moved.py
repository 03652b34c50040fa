"""LoRA whose base PEFT changes whenever it loads it: PiSSA and OLoRA take a part out and train it in the factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError
from ..adapter import Frozen
from . import refusals

_LOST = ("loftq", "corda", "lora_ga", "pissa_")  # drawn from data, gradients or at random: not to be had again
_STARTS = ("corda", "lora_ga", "pissa", "olora")  # with s B0 A0 taken out of the base, B0 and A0 the first factors


def takes_out(init: str) -> bool:
    """Whether the factors as they were first tell what PEFT took out of the base."""
    return init.lower().startswith(_STARTS)


def by(init: Any) -> str | None:
    """What PEFT takes out of the base: pissa, olora or None. Raises: CommonweightError for what cannot be repeated."""
    if not isinstance(init, str):
        return None
    name = init.lower()
    if name.startswith(_LOST):
        raise refusals.moved(init)
    return name if name in ("pissa", "olora") else None


def factors(how: str, site: str, rank: int, base: Frozen) -> tuple[Tensor, Tensor]:
    """(A0 (rank, inp), B0 (out, rank)) with B0 A0 what is taken out of the base's weight; signs do not matter in it."""
    if how == "olora":
        q, r = torch.linalg.qr(base.weight(site).cpu())
        return r[:rank], q[:, :rank]
    u, s, v = (t.cpu() for t in base.svd(site))
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def repeated(
    how: str, ranks: Mapping[str, int], scales: Mapping[str, float], values: Mapping[str, Tensor], base: Frozen
) -> tuple[dict[str, int], dict[str, float], dict[str, Tensor]]:
    """`doubled`, by what PEFT takes out of the base each time: OLoRA s B0 A0, PiSSA B0 A0."""
    taken = {}
    for site, r in ranks.items():
        A0, B0 = factors(how, site, r, base)
        if len(A0) < r:
            raise CommonweightError(f"adapter_config.json: r={r}: {how} has no so many directions at {site}")
        taken[site] = A0, B0 if how == "olora" else B0 / scales[site]
    return doubled(taken, ranks, scales, values)


def doubled(
    taken: Mapping[str, tuple[Tensor, Tensor]],
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    values: Mapping[str, Tensor],
) -> tuple[dict[str, int], dict[str, float], dict[str, Tensor]]:
    """(ranks, alphas, values) of LoRA of twice the rank that says s (B A - B0 A0): s [B, -B0] [A; A0].

    taken: (A0, B0) of each site. Other values stay.
    """
    new, alphas, out = {}, {}, dict(values)
    for site, r in ranks.items():
        A0, B0 = taken[site]
        out[f"{site}.A"] = torch.cat([values[f"{site}.A"], A0])
        out[f"{site}.B"] = torch.cat([values[f"{site}.B"], -B0], 1)
        new[site], alphas[site] = 2 * r, scales[site] * 2 * r
    return new, alphas, out
