"""Rows times the weights of packed experts, each read when it has rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..packs import Pack
from .products import pieces


def of_packed(pack: Pack, x: Tensor, ends: Tensor) -> Tensor:
    """x (S, inp), the rows of expert e up to ends[e] -> (S, out), in x's dtype.

    By the library's own product where it rounds its input too and runs here, so that rows of a batch get what the base
    gives alone; else with weights that are read expert by expert, in the forward pass and again in the backward one.
    """
    if pack.own is not None and _runs(pack, x, ends):
        found = [(a, pack.own(e, x[a:b])) for e, a, b in pieces(ends)]
        return torch.cat([y.to(x.dtype) for _, y in found]) if found else x.new_zeros(0, pack.shape[1])
    return Unpacked.apply(x, pack, ends)  # type: ignore[no-any-return]


_OWN: dict[tuple[str, str], bool] = {}  # (class, device)


def _runs(pack: Pack, x: Tensor, ends: Tensor) -> bool:
    """Whether the library's own product is there: its kernels may be made for other devices alone. Tried once."""
    key = (pack.kind, x.device.type)
    first = next(iter(pieces(ends)), None)
    if key not in _OWN and pack.own is not None and first is not None:
        try:
            with torch.no_grad():
                pack.own(first[0], x[first[1] : first[2]])
            _OWN[key] = True
        except (ImportError, RuntimeError, OSError, ValueError, AttributeError):
            _OWN[key] = False
    return _OWN.get(key, False)


class Unpacked(torch.autograd.Function):
    """The product with weights that are not kept between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pack: Pack, ends: Tensor) -> Tensor:
        ctx.pack, ctx.ends = pack, ends
        read, y = pack.open(), x.new_zeros(len(x), pack.shape[1])
        for e, a, b in pieces(ends):
            y[a:b] = F.linear(x[a:b], read(e).to(x.dtype))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        read, dx = ctx.pack.open(), g.new_zeros(len(g), ctx.pack.shape[2])
        for e, a, b in pieces(ctx.ends):
            dx[a:b] = g[a:b] @ read(e).to(g.dtype)
        return dx, None, None
