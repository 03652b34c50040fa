"""A low-rank update as one node of the autograd graph.

Four products with a side of length r make the gradients of y + s (x A^T) B^T, and each is several times slower in the
layout that autograd takes (512 wide, r 8, float32 on a CPU: `gy B` 0.74 ms, `(B^T gy^T)^T` 0.17; `gy^T h` 0.73,
`h^T gy` 0.15). Here every product has r rows. The sum goes into y, and where the frozen layer's own product is known to
be y, its gradient and the update's go into one tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .products import thin, times


def low(x: Tensor, A: Tensor) -> Tensor:
    """x A^T. Shapes: x (..., d_in), A (r, d_in) -> (..., r)."""
    if not recorded(x, A):
        return torch.nn.functional.linear(x, A)
    return _Low.apply(x, A)  # type: ignore[return-value]


def add(x: Tensor, y: Tensor, A: Tensor, B: Tensor, scale: float, weight: Tensor | None = None) -> Tensor:
    """y + scale (x A^T) B^T, written over y. Shapes: x (..., d_in), y (..., d_out), A (r, d_in), B (d_out, r).

    weight: the frozen (d_out, d_in) of which y = x weight^T + constant, y itself without a graph; its gradient for x is
    then made here too. Saved for the backward pass: x, and (r, T) numbers. Derivatives of derivatives are right.
    """
    return _Add.apply(y, x, A, B, scale, weight)  # type: ignore[return-value]


def raised(h: Tensor, y: Tensor, B: Tensor, scale: float) -> Tensor:
    """y + scale h B^T, written over y. Shapes: h (..., r), y (..., d_out), B (d_out, r)."""
    return _Raised.apply(y, h, B, scale)  # type: ignore[return-value]


def recorded(*tensors: Tensor) -> bool:
    """Whether a graph is made of these, by autograd alone: plain tensors of one dtype on one device, no torch.compile,
    no torch.func, no forward mode, no autocast."""
    first = tensors[0]
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and all(
            type(t) in _PLAIN and t.dtype is first.dtype and t.device == first.device and not t.is_sparse
            for t in tensors
        )
        and first.is_floating_point()
        and not torch.is_autocast_enabled(first.device.type)
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


# y comes first in both: where it is a view, autograd takes the first input for what was written over
_PLAIN = (Tensor, torch.nn.Parameter)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _Low(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, A: Tensor) -> Tensor:
        return thin(A, _flat(x)).mT.reshape(*x.shape[:-1], len(A))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor):  # type: ignore[override]
        x, A = ctx.saved_tensors
        g = _flat(g)
        gx = (g @ A).view(x.shape) if ctx.needs_input_grad[0] else None
        return gx, thin(g.mT, _flat(x).mT) if ctx.needs_input_grad[1] else None


class _Raised(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, h: Tensor, B: Tensor, scale: float) -> Tensor:
        _flat(y).addmm_(_flat(h), B.mT, alpha=scale)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        y, h, B, ctx.scale = inputs
        ctx.mark_dirty(y)
        ctx.save_for_backward(h, B)

    @staticmethod
    def backward(ctx: Any, gy: Tensor):  # type: ignore[override]
        h, B = ctx.saved_tensors
        g = _flat(gy)
        gh = (thin(B.mT, g) * ctx.scale).mT.reshape(h.shape) if ctx.needs_input_grad[1] else None
        gB = thin(_flat(h).mT * ctx.scale, g.mT).mT if ctx.needs_input_grad[2] else None
        return gy, gh, gB, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, weight: Tensor | None) -> Tensor:  # type: ignore[override]
        h = thin(A, _flat(x))  # (r, T)
        _flat(y).addmm_(h.mT, B.mT, alpha=scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, A, B, weight, h if ctx.needs_input_grad[3] else None)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor):  # type: ignore[override]
        x, A, B, weight, h = ctx.saved_tensors
        wants_y, wants_x, wants_A, wants_B, *_ = ctx.needs_input_grad
        g, flat = _flat(gy), _flat(x)
        gx = gA = gB = None
        if wants_x or wants_A:
            gh = thin(B.mT, g) * ctx.scale  # (r, T)
            if wants_A:
                gA = thin(gh, flat.mT)
            if wants_x:
                gx = (gh.mT @ A if weight is None else times(g, weight).addmm_(gh.mT, A)).view(x.shape)
        if wants_B:
            if torch.is_grad_enabled():  # of a derivative of this one, h is a function of x and A
                h = thin(A, flat)
            gB = thin(h * ctx.scale, g.mT).mT
        return gy if wants_y else None, gx, gA, gB, None, None
