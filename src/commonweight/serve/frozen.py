"""What a finished tenant is at a layer: y' = s * y + c + B A (t * x), whatever its method, when it has that form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bind.activated import Activated
from ..bind.magnitude import Magnitude
from ..bind.scale import ScaleInput, ScaleOutput
from ..bind.shift import BiasShift
from ..host import Tenant
from ..host.pools import stored
from ..host.tenant import Entry

WIDEST = 64  # a larger rank is better read through the method's own form, which may share its factors


class Frozen(NamedTuple):
    """A (r, inp), B (out, r), s and c (out,), t (inp,); None where a part is missing. float32, without gradients. As
    `frozen` makes them, A and B lie column by column, as a bank reads them."""

    A: Tensor | None = None
    B: Tensor | None = None
    s: Tensor | None = None
    t: Tensor | None = None
    c: Tensor | None = None


def frozen(tenant: Tenant, modules: Mapping[str, Any]) -> dict[str, Frozen] | None:
    """Site -> its form there; None where the tenant has another form at any site. modules: as a host's sites see them.

    Cost: once a tenant; the numbers of its factors, for DoRA a product with each weight.
    """
    out = {}
    for name, entries in tenant.table.items():
        found = _at(name, entries, modules)
        if isinstance(found, str):
            return None
        out[name] = found._replace(A=_by_columns(found.A), B=_by_columns(found.B))
    return out


def _by_columns(x: Tensor | None) -> Tensor | None:
    """The same numbers: turned round here, beside the batch, and not in the step that a tenant joins."""
    return None if x is None else x.T.contiguous().T


def why(tenant: Tenant, modules: Mapping[str, Any]) -> str:
    """What it has that is not of this form, for messages; "" where all of it is."""
    found = (_at(name, entries, modules) for name, entries in tenant.table.items())
    return next((f for f in found if isinstance(f, str)), "")


def _at(name: str, entries: list[Entry], modules: Mapping[str, Any]) -> Frozen | str:
    """Its form at a site, or why it has none there."""
    at = modules.get(name)
    if ".experts." in name:
        return f"it changes experts ({name})"
    if at is None or at.kind != "linear" or at.slot != "weight":
        return f"it changes {name}, which is no linear layer's weight"
    found = _joined(entries, at)
    if found is None:
        return f"its change of {name} is no low-rank change, scale or shift"
    if found.A is not None and len(found.A) > WIDEST:
        return f"its rank at {name} is {len(found.A)}, and at most {WIDEST} is served so"
    return found


@torch.no_grad()
def _joined(entries: list[Entry], at: Any) -> Frozen | None:
    """All uses at one layer. Several, or such of some rows alone, are one where each is low rank or a shift."""
    parts = []
    for e in entries:
        found = of(e.bind, e.slots(None), at.rows(e.rows))
        if found is None:
            return None
        parts.append((found, e.rows))
    if len(parts) == 1 and parts[0][1] is None:
        return Frozen(*(None if v is None else v.detach().float().contiguous() for v in parts[0][0]))
    if any(f.s is not None or f.t is not None for f, _ in parts):
        return None
    out = at.weight.shape[0]
    lows = [(f, rows or (0, out)) for f, rows in parts if f.A is not None and f.B is not None]
    shifts = [(f.c, rows or (0, out)) for f, rows in parts if f.c is not None]
    A = torch.cat([f.A.float() for f, _ in lows]).contiguous() if lows else None  # type: ignore[union-attr]
    B = torch.cat([_placed(f.B, rows, out) for f, rows in lows], 1).contiguous() if lows else None  # type: ignore[arg-type]
    c = sum(_placed(x, rows, out) for x, rows in shifts) if shifts else None
    return Frozen(A, B, c=c)  # type: ignore[arg-type]


def _placed(x: Tensor, rows: tuple[int, int], out: int) -> Tensor:
    whole = x.new_zeros(out, *x.shape[1:], dtype=torch.float32)
    whole[slice(*rows)] = x.detach().float()
    return whole


@singledispatch
def of(bind: Any, slots: Mapping[str, Tensor], at: Any) -> Frozen | None:
    """One use's form, or None. Any bind with `factors` is low rank."""
    if getattr(bind, "factors", None) is None:
        return None
    A, B = bind.factors(**slots)
    return Frozen(A, B)


@of.register
def _(bind: Activated, slots: Mapping[str, Tensor], at: Any) -> Frozen | None:
    """Of the tokens that act; the engine gives it no others."""
    return of(bind.low, slots, at)


@of.register
def _(bind: ScaleOutput, slots: Mapping[str, Tensor], at: Any) -> Frozen:
    return Frozen(s=slots["l"])


@of.register
def _(bind: ScaleInput, slots: Mapping[str, Tensor], at: Any) -> Frozen:
    return Frozen(t=slots["l"])


@of.register
def _(bind: BiasShift, slots: Mapping[str, Tensor], at: Any) -> Frozen:
    return Frozen(c=slots["db"])


@of.register
def _(bind: Magnitude, slots: Mapping[str, Tensor], at: Any) -> Frozen:
    """DoRA scales what the base computes without its bias."""
    gain = slots["m"] / bind.length(at.weight, slots["A"], slots["B"], slots["n"])
    bias = at.bias
    c = None if bias is None else (1 - gain) * bias.float()
    return Frozen(slots["A"], bind.scale * gain[:, None] * slots["B"], gain, c=c)


def finite(tenant: Tenant) -> bool:
    """Whether all numbers of a tenant are."""
    return all(bool(p.isfinite().all()) for p in stored(tenant.pools) if p.is_floating_point())
