"""Layers that change how they hold their weight while they run: under a host they do not.

bitsandbytes 0.50 on a CPU with AVX512-BF16: the first forward in eval mode lays a 4-bit weight out for a kernel that
hands no gradient to its input, and rounds its scales. Whoever trains after an evaluation would then get wrong gradients
in all but the last layers, without an error. compressed-tensors 0.20 unpacks a whole model in its first forward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .names import named
from .unpack import unpacked
from .weights import dense

_FLAG = "support_avx512bf16_for_cpu"


def keep_storage(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, bool]]:
    """Such layers among them, and what they had said of the CPU. They keep their usual form from now on; one that was
    laid out anew already gets it back, with the scales as they were rounded."""
    found = []
    for module in modules:
        if module.__dict__.get(_FLAG):
            found.append((module, module.__dict__[_FLAG]))
            setattr(module, _FLAG, False)
        if _FLAG in module.__dict__:
            _usual(module._parameters.get("weight"))
    return found


def tell_of_rows(model: nn.Module) -> None:
    """Warns of 4-bit layers that compute with other numbers than were packed: bitsandbytes 0.50.2's kernel for CPUs
    takes it that each row begins a block of its own."""
    wrong = [n for n, m in named(model) if _misread(m, m._parameters.get("weight"))]
    if wrong:
        warnings.warn(
            f"{wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''}: bitsandbytes packed rows that are no "
            "multiple of its block, and on a CPU computes with other numbers than it packed, which a merged model has; "
            "load the base in floating point (adapt --quantize packs it but for such layers)",
            stacklevel=4,
        )


def _misread(module: nn.Module, weight: Any) -> bool:
    state: Any = getattr(weight, "quant_state", None)
    shape = getattr(state, "shape", ())
    if len(shape) != 2 or weight.device.type != "cpu" or not shape[1] % state.blocksize:
        return False
    from bitsandbytes.functional import dequantize_4bit

    with torch.no_grad():
        packed = dense(module)
        return bool((dequantize_4bit(weight.data, state) - packed).norm() > 1e-3 * packed.norm())


def unpack_at_once(model: nn.Module) -> None:
    """Does now what compressed-tensors would do in the first forward: then the weights stay where a host finds them."""
    for module in model.modules():
        for hook in [*module._forward_pre_hooks.values()]:
            if getattr(hook, "__name__", "") == "ct_decompress_hook":
                hook(module, ())


def _usual(weight: Any) -> None:
    state: Any = getattr(weight, "quant_state", None)
    if not getattr(state, "packing_format_for_cpu", False):
        return
    codes, absmax = unpacked(weight.data, state)
    kind = getattr(state, "original_storage_type", None) or torch.uint8
    raw = (codes[::2] << 4 | codes[1::2]).view(kind)
    weight.data = raw.view(state.original_qshape) if kind is torch.uint8 else raw[:, None]
    state.absmax, state.nested, state.packing_format_for_cpu = absmax, False, False
    state.dtype = state.original_dtype


def give_back(kept: Iterable[tuple[nn.Module, bool]]) -> None:
    """As the layers would be without a host."""
    for module, flag in kept:
        setattr(module, _FLAG, flag)
