"""Activations that keep one bit a number for the backward pass, as MobileTL has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.bits import packed, unpacked

ACTIVATIONS = nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU
HALF = 0.5  # ours: where the derivative is above it, the gradient passes as it is


class Masked(torch.autograd.Function):
    """y = f(x), exactly; its gradient is that of y where f'(x) > 1/2, and else 0. Kept: a bit for each number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            y = f(own)
            (slope,) = torch.autograd.grad(y.sum(), own)
        ctx.save_for_backward(packed(slope > HALF))
        ctx.shape = x.shape
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return grads[0] * unpacked(bits, ctx.shape), None


@contextmanager
def one_bit(model: nn.Module) -> Iterator[None]:
    """Within it the model's modules of `ACTIVATIONS` answer as before, to the bit, and keep a bit a number where torch
    keeps the number: 1/32 of their memory. Gradients are exact for ReLU and ReLU6; of the others the slope is rounded
    to 0 or 1.

    Source: arXiv 2212.03246, whose activations go backwards by "a signed function, so only a binary mask is stored";
    its cuts were not found. Ours: the slope is cut at one half, which for Hard-Swish is x > 0. Activations that a model
    calls as functions are not changed. Cost: a backward pass of each activation, in the forward pass.
    """
    mine = [m for m in model.modules() if type(m) in ACTIVATIONS]
    before = [(m, m.__dict__.get("forward")) for m in mine]
    for m in mine:
        m.forward = partial(_masked, m.forward, bool(getattr(m, "inplace", False)))
    try:
        yield
    finally:
        for m, was in before:
            del m.forward
            if was is not None:
                m.forward = was


def _masked(f: Callable[[Tensor], Tensor], inplace: bool, x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return f(x)
    return Masked.apply(x, (lambda t: f(t.clone())) if inplace else f)  # type: ignore[return-value]
