"""What files of other tools do to weights, and a tenant that says the same.

A reader gives {name of a module: Change}; `place` finds the sites, `adapter` the method and the values of its pools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import CommonweightError, Site
from ..methods import get
from .adapter import Adapter, Frozen
from .pairs import commonest, others
from .peft import experts
from .peft.keys import PREFIX
from .peft.low_rank import truncated

EXACT = 1e-6  # relative error in the Frobenius norm below which factors in float32 are the change itself


class Change(NamedTuple):
    """w' = w + scale B A, then m w' / |w'| per row where there is an m; or w' = w + delta. b' = b + bias.

    A (r, inp), B (out, r), m (out,), delta (out, inp) or (d,) of a norm, bias (out,). dense: delta has no smaller
    factors, so that nobody need look for them. Writers are given all experts of a projection at once: A (E, r, inp),
    B (E, out, r).
    """

    A: Tensor | None = None
    B: Tensor | None = None
    scale: float = 1.0
    m: Tensor | None = None
    delta: Tensor | None = None
    bias: Tensor | None = None
    dense: bool = False

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the weight that it changes; None where it changes a bias alone."""
        if self.A is not None and self.B is not None:
            return self.B.shape[0], self.A.shape[1]
        return None if self.delta is None else tuple(self.delta.shape)


def place(changes: Mapping[str, Change], sites: Mapping[str, Site]) -> dict[str, Change]:
    """{our site's name: change}. sites: by the names of the file.

    Raises: CommonweightError for layers that this base lacks or has in another shape.
    """
    apart = {n: c for n, c in changes.items() if n not in sites and ".experts." in n and c.A is not None}
    changes = {n: c for n, c in changes.items() if n not in apart}
    lost = [n for n in changes if n not in sites]
    if lost and len(lost) == len(changes):
        raise CommonweightError(
            f"made for another model: none of its {len(lost)} layers is in this base, for example {lost[0]}"
        )
    if lost:
        split = " (the host splits it, fused=...; open one that does not)" if f"{lost[0]}[0]" in sites else ""
        raise CommonweightError(
            f"{lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}: this base has no such layer{split}; "
            "made for another model, or for a kind of layer that is no site here"
        )
    out = _in_experts(apart, sites)
    for name, change in changes.items():
        site = sites[name]
        want = (site.out,) if site.kind == "norm" else (site.out, site.inp)
        for what, came, wanted in (
            ("changes a weight of", change.shape, want),
            ("its magnitudes are", None if change.m is None else tuple(change.m.shape), (site.out,)),
            ("its bias is", None if change.bias is None else tuple(change.bias.shape), (site.out,)),
        ):
            if came is not None and came != wanted:
                raise CommonweightError(f"{name}: {what} {came}, this base has {wanted}; made for another model")
        out[site.name] = change
    return out


def _in_experts(changes: Mapping[str, Change], sites: Mapping[str, Site]) -> dict[str, Change]:
    """Those of single experts, which the model keeps in one tensor."""
    factors = {"A": {n: c.A for n, c in changes.items()}, "B": {n: c.B for n, c in changes.items()}}
    keyed = {f"{PREFIX}{n}.lora_{f}.weight": t for f, by in factors.items() for n, t in by.items() if t is not None}
    rest, found = experts.part(keyed, sites, lambda name, rank: changes[name].scale)
    if rest:
        raise CommonweightError(
            f"{min(rest).removeprefix(PREFIX)}: this base has no such expert; made for another model"
        )
    return {n: Change(low.A, low.B, low.scale) for n, low in found.items()}


def adapter(
    changes: Mapping[str, Change], sites: Mapping[str, Site], base: Frozen, tolerance: float | None = None,
    dropout: float = 0.0,
) -> Adapter:  # fmt: skip
    """The tenant: LoRA, DoRA, biases, norms, or whole differences, whichever says all of it with the fewest numbers.

    changes, sites: by our names. Exact but for rounding, or up to a relative error of `tolerance` a site (Frobenius): a
    difference without factors gets those of its rank where they are smaller. Cost: an SVD for each such difference.
    """
    if tolerance is not None and not tolerance >= 0:
        raise CommonweightError(f"tolerance is {tolerance}; it must be 0 or more")
    limit = EXACT if tolerance is None else tolerance
    for name, change in changes.items():
        if change.bias is not None and not sites[name].bias and change.bias.any():
            raise CommonweightError(
                f"{name}: changes a bias, and this base has none there; made for another model, or of its own tool"
            )
    changes = {n: c if sites[n].bias else c._replace(bias=None) for n, c in changes.items()}
    kinds = {sites[n].kind for n in changes}
    if kinds <= _read("dora") and all(c.m is not None and c.bias is None for c in changes.values()):
        return _low("dora", changes, sites, dropout)
    plain = {n: whole(n, c, base) if c.m is not None else c for n, c in changes.items()}
    if kinds == {"norm"}:
        return Adapter("lntuning", {}, tuple(plain), _whole(plain, sites, base))
    if all(c.A is None and c.delta is None and c.bias is not None for c in plain.values()):
        return Adapter("bitfit", {}, tuple(plain), {f"{n}.db": c.bias for n, c in plain.items() if c.bias is not None})
    if kinds <= _read("lora") and (tolerance is not None or not all(c.dense for c in plain.values())):
        low = {n: factored(c, sites[n], limit) for n, c in plain.items()}
        if sum(c.A.numel() + c.B.numel() for c in low.values()) < sum(s.out * s.inp for s in map(sites.get, low)):  # type: ignore[union-attr]
            return _low("lora", low, sites, dropout)
    return Adapter("full", {}, tuple(plain), _whole(plain, sites, base))


def _read(method: str) -> set[str]:
    """Kinds of sites that a method reads, by a pattern at least."""
    found = get(method)
    return {*found.kinds, *found.named}


def whole(name: str, change: Change, base: Frozen) -> Change:
    """The same as a difference of the whole weight."""
    if change.A is None or change.B is None:
        return change
    delta = change.scale * (change.B @ change.A)
    if change.m is not None:
        w = base.weight(name).cpu()
        new = w.double() + delta.double()
        delta = ((change.m / torch.linalg.vector_norm(new, dim=1))[:, None] * new - w).float()
    return Change(delta=delta, bias=change.bias)


def factored(change: Change, site: Site, tolerance: float = EXACT) -> Change:
    """The same in factors of the smallest rank within a relative error."""
    if change.A is not None and change.B is not None:
        return change
    delta = change.delta
    if delta is None:
        return Change(torch.zeros(1, site.inp), torch.zeros(site.out, 1), bias=change.bias)
    low = truncated(delta, None, tolerance)
    return Change(low.A, low.B, bias=change.bias)


def _low(method: str, changes: Mapping[str, Change], sites: Mapping[str, Site], dropout: float) -> Adapter:
    values: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    biased = method == "lora" and any(c.bias is not None for c in changes.values())
    for name, c in changes.items():
        A, B, scale = c.A, c.B, c.scale
        assert A is not None and B is not None
        if scale <= 0:  # an alpha is above 0
            B, scale = B * scale, 1.0
        values[f"{name}.A"], values[f"{name}.B"] = A.float(), B.float()
        ranks[name], alphas[name] = len(A), float(scale) * len(A)
        if method == "dora" and c.m is not None:
            values[f"{name}.m"] = c.m.float()
        if biased and sites[name].bias:
            values[f"{name}.b"] = torch.zeros(sites[name].out) if c.bias is None else c.bias.float()
    rank, alpha = commonest(ranks.values()), commonest(alphas.values())
    options = {"rank": rank, "alpha": alpha, "dropout": dropout}
    options |= {"ranks": others(ranks, rank), "alphas": others(alphas, alpha)}
    return Adapter(method, {**options, "bias": True} if biased else options, tuple(changes), values)


def _whole(changes: Mapping[str, Change], sites: Mapping[str, Site], base: Frozen) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, change in changes.items():
        c, site = whole(name, change, base), sites[name]
        zeros = torch.zeros(site.out) if site.kind == "norm" else torch.zeros(site.out, site.inp)
        out[f"{name}.dw"] = zeros if c.delta is None else c.delta.float()
        if site.bias:
            out[f"{name}.db"] = torch.zeros(site.out) if c.bias is None else c.bias.float()
    return out
