"""Weighted sums of tenants, as `a+0.5*b`: what each changes, times its weight, added up.

What a tenant of the common form adds to a layer's output is linear in nothing but itself, so that a sum of such
changes is again of that form, and exact: ranks add up, scales and shifts are added.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import CommonweightError, counted, safe
from .frozen import WIDEST, Frozen

MOST = 8  # tenants of one sum
_TERM = re.compile(r"(?:([^*]*)\*)?([^*]*)")
_NUMBER = re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)")


class Part(NamedTuple):
    """A tenant in a sum. form: at each layer; None where it has no common form, and why not. method: for messages."""

    weight: float
    name: str
    method: str
    form: Mapping[str, Frozen] | None
    why: str = ""


def several(name: str) -> bool:
    """Whether a name is a sum or a multiple; no tenant's own name has these signs."""
    return isinstance(name, str) and ("+" in name or "*" in name)


def terms(name: str) -> dict[str, float]:
    """`a+0.5*b` -> {"a": 1.0, "b": 0.5}. One that stands there twice counts with the sum of its weights.

    Raises: CommonweightError for what is no sum of tenants, saying how it is written.
    """
    out: dict[str, float] = {}
    for raw in name.split("+"):
        found = _TERM.fullmatch(raw.strip())
        if found is None:
            raise CommonweightError(f"model {name!r}: {raw.strip()!r} is no tenant with a weight; write a+0.5*b")
        by, tenant = found[1], found[2].strip()
        if by is not None and not _NUMBER.fullmatch(by.strip()):
            raise CommonweightError(
                f"model {name!r}: {by.strip()!r} is no weight; write a+0.5*b, or a+-0.5*b for a difference"
            )
        weight = 1.0 if by is None else float(by)
        if not math.isfinite(weight) or abs(weight) > 100:
            raise CommonweightError(f"model {name!r}: the weight {weight:g} is too large; wanted -100 to 100")
        try:
            safe(tenant)
        except CommonweightError as e:
            raise CommonweightError(f"model {name!r}: {e}") from e
        out[tenant] = out.get(tenant, 0.0) + weight
    if len(out) > MOST:
        raise CommonweightError(f"model {name!r}: a sum of {counted(len(out), 'tenant')}; at most {MOST} are served")
    return out


@torch.no_grad()
def total(parts: Sequence[Part]) -> dict[str, Frozen]:
    """Site -> what the sum of these is there.

    Cost: a copy of the factors. Raises: CommonweightError, with the reason, for tenants without a sum.
    """
    for p in parts:
        if p.form is None:
            raise CommonweightError(
                f"tenant {p.name!r} ({p.method}) cannot be added to others: {p.why}; ask it alone, or merge the models"
            )
    sites = dict.fromkeys(site for p in parts for site in (p.form or ()))
    return {s: _sum(s, [(p.weight, p.form[s]) for p in parts if p.form and s in p.form]) for s in sites}


def _sum(site: str, parts: Sequence[tuple[float, Frozen]]) -> Frozen:
    """y' = y + sum of w ((s - 1) y + c + B A (t x)). Inputs that are scaled are so for all parts, which A undoes."""
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    t = _scale([(w, f.t) for w, f in parts])
    if t is not None:
        if any(f.s is not None for _, f in parts):
            raise CommonweightError(
                f"{site}: one of these tenants scales the inputs there and one the outputs, which have no sum"
            )
        if float(t.abs().min()) < 1e-3:
            raise CommonweightError(
                f"{site}: with these weights an input is multiplied by {float(t.abs().min()):.2g}, which no other "
                "change there can be added to; take other weights"
            )
    lows = [(w, f.A if f.t is None else f.A * f.t, f.B) for w, f in parts if f.A is not None and f.B is not None]
    if t is not None:
        lows = [(w, a / t, b) for w, a, b in lows]
    rank = sum(len(a) for _, a, _ in lows)
    if rank > 2 * WIDEST:
        raise CommonweightError(f"{site}: these tenants have rank {rank} together; at most {2 * WIDEST} are served")
    A = torch.cat([a for _, a, _ in lows]).contiguous() if lows else None
    B = torch.cat([w * b for w, _, b in lows], 1).contiguous() if lows else None
    shifts = [w * f.c for w, f in parts if f.c is not None]
    return Frozen(A, B, _scale([(w, f.s) for w, f in parts]), t, torch.stack(shifts).sum(0) if shifts else None)


def _scale(parts: Sequence[tuple[float, Tensor | None]]) -> Tensor | None:
    moved = [w * (v - 1) for w, v in parts if v is not None]
    return 1 + torch.stack(moved).sum(0) if moved else None
