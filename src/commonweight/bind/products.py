"""Products in float32 on a CPU by oneDNN, where they are faster than those that torch takes.

MKL leaves AVX512 unused on AMD's processors (Zen 4, two threads, 1,024 rows: 512 to 1,376 wide 12.7 and 8.8 ms, 512 to
512 4.3 and 3.3), and is slow where one side is a rank of 8 and the other is wide (1,024 rows of 1,376: the gradient
of A 0.53 and 0.15 ms). On Intel's it uses them fully and is 2 to 15 % faster than oneDNN: there they are not used.
oneDNN makes a kernel for each new number of rows, in about a millisecond: small products stay with torch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

# what torch.compile's own code calls for linear layers; x86 alone has it
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_LARGE = 1 << 27  # multiplications
_WIDE = 1 << 19  # numbers of the long operand of a product with a rank


def at_hand() -> bool:
    """Whether this processor has them, they are faster there than MKL's, and they are not switched off."""
    return (
        _ONEDNN is not None
        and bool(torch.backends.mkldnn.enabled)
        and torch.cpu._is_avx512_supported()
        and not _intel()
    )


@cache
def _intel() -> bool:
    return "intel" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()


def times(g: Tensor, weight: Tensor) -> Tensor:
    """g weight. Shapes: g (T, d_out), weight (d_out, d_in) -> (T, d_in)."""
    return _made(g, weight.mT, None) if large(g, weight.mT) and not torch.is_grad_enabled() else g @ weight


def thin(a: Tensor, x: Tensor) -> Tensor:
    """a x^T. Shapes: a (r, k) with few rows, x (n, k) -> (r, n)."""
    if x.numel() < _WIDE or not _plain(a, x) or torch.is_grad_enabled():  # it has no derivative
        return a @ x.mT
    return _made(a.contiguous(), x, None)


def large(x: Tensor, weight: Tensor) -> bool:
    """Whether x weight^T is one that oneDNN makes faster. Shapes: x (..., d_in), weight (d_out, d_in)."""
    if weight.dim() != 2 or x.shape[-1:] != weight.shape[1:]:
        return False
    return x.numel() * weight.shape[0] >= _LARGE and x.is_contiguous() and _plain(x, weight)


def frozen(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear(x, weight, bias) of a weight that is not trained, where it is `large`."""
    return _Frozen.apply(x, weight, bias)  # type: ignore[return-value]


def _plain(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype is torch.float32 and weight.dtype is torch.float32 and x.device.type == weight.device.type == "cpu"
        and at_hand()
    )  # fmt: skip


def _made(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _ONEDNN(x, weight, bias, "none", [], "")  # type: ignore[misc]


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight)
        made = _made(x.view(-1, x.shape[-1]), weight, bias)
        # not a view, so that what follows may write over it
        return torch.ops.aten._unsafe_view.default(made, [*x.shape[:-1], len(weight)])

    @staticmethod
    def backward(ctx: Any, g: Tensor):  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return times(g.reshape(-1, g.shape[-1]), weight).view(*g.shape[:-1], weight.shape[1]), None, None
