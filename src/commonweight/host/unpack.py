"""Weights that libraries pack, as numbers: by the library's own function if it has one, else by its published layout.

A reader is given (module, what it holds as ``weight``, (d_out, d_in), steady) and answers the weight (d_out, d_in) or,
where the layer is not of its kind, None. Cost: the whole weight each time. Tried against bitsandbytes 0.50.2, torchao
0.18.0, optimum-quanto 0.2.7, hqq 0.2.8, gptqmodel 7.7.0, autoawq 0.2.9, compressed-tensors 0.20.1, transformers 5.23.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Shape = tuple[int, int] | None


def four_bit(module: nn.Module, w: Any, shape: Shape, steady: bool) -> Tensor | None:
    """bitsandbytes: two codes a byte, the first in the upper half; value = code[half byte] * absmax of its block.

    After a forward in eval mode on some CPUs: rows in groups of 32, each column pair of a group as 64 codes of which
    byte i has the i-th in its lower and the (i + 32)-th in its upper half; absmax (blocks, rows) in bfloat16.
    """
    if hasattr(w, "quant_state") and w.dtype in _FLOATS and tuple(w.shape) == shape:
        return w.data  # not quantised yet
    state: Any = getattr(w, "quant_state", None) or getattr(module, "quant_state", None)
    code, held = getattr(state, "code", None), getattr(state, "shape", None)
    if code is None or held is None or not isinstance(w, Tensor):
        return None
    out, inp = held
    codes, absmax = unpacked(w.data, state)
    absmax = absmax.bfloat16().float() if steady else absmax
    code = code.to(codes.device).float()
    if out * inp % state.blocksize:  # the last block is not full
        at = torch.arange(out * inp, device=codes.device) // state.blocksize
        values = code[codes.long()] * absmax[at]
    else:
        values = code[codes.long()].view(-1, state.blocksize) * absmax[:, None]
    dtype = getattr(state, "original_dtype", None) or state.dtype
    return values.view(out, inp).to(torch.float32 if steady else dtype)


def unpacked(data: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    """(codes, one a number and row after row, absmax of each block) of a 4-bit weight, in either of its orders."""
    out, inp = state.shape
    raw = data.contiguous().view(torch.uint8).reshape(-1)
    if getattr(state, "packing_format_for_cpu", False):
        raw = raw.view(-1, 32)
        codes = torch.cat([raw & 15, raw >> 4], 1).view(out // 32, inp // 2, 32, 2).transpose(1, 2).reshape(-1)
        return codes, state.absmax.T.float().reshape(-1)
    codes = torch.stack([raw >> 4, raw & 15], 1).view(-1)[: out * inp]
    absmax = state.absmax
    if state.nested:
        inner = state.state2
        at = torch.arange(absmax.numel(), device=absmax.device) // inner.blocksize
        absmax = inner.code[absmax.reshape(-1).long()].float() * inner.absmax.float()[at] + state.offset
    return codes, absmax.float().reshape(-1)


def sampled(module: nn.Module, w: Any, shape: Shape, places: Tensor) -> Tensor | None:
    """Numbers of a weight that bitsandbytes has packed, at places of it row after row, steady. Cost: of these alone."""
    if shape is None or not isinstance(w, Tensor):
        return None
    places, inp = places.to(w.device), shape[1]
    if (scale := _scale(module, w)) is not None:
        return w.data.reshape(-1)[places].float() * scale[places // inp] / 127
    state: Any = getattr(w, "quant_state", None)
    if getattr(state, "code", None) is None or tuple(getattr(state, "shape", ())) != shape:
        return None
    raw = w.data.contiguous().view(torch.uint8).reshape(-1)
    if getattr(state, "packing_format_for_cpu", False):
        row, column = places // inp, places % inp
        nth = row % 32 * 2 + column % 2  # among the 64 codes of a column pair
        byte = raw[(row // 32 * (inp // 2) + column // 2) * 32 + nth % 32]
        upper, absmax = nth >= 32, state.absmax[column // state.blocksize, row].float()
    else:
        byte, upper, at = raw[places // 2], places % 2 == 0, places // state.blocksize
        absmax = state.absmax.reshape(-1)[at].float()
        if state.nested:
            inner = state.state2
            absmax = inner.code[absmax.long()].float() * inner.absmax.float()[at // inner.blocksize] + state.offset
    codes = torch.where(upper, byte >> 4, byte & 15)
    return state.code.to(w.device).float()[codes.long()] * absmax.bfloat16().float()


def eight_bit(module: nn.Module, w: Any, shape: Shape, steady: bool) -> Tensor | None:
    """bitsandbytes: value = code * scale of the row / 127; the first forward moves both from the weight to `state`."""
    if hasattr(w, "SCB") and w.dtype in _FLOATS:
        return w.data  # not quantised, or anew in each forward
    scale = _scale(module, w)
    return None if scale is None else w.data.float() * scale[:, None] / 127


def _scale(module: nn.Module, w: Any) -> Tensor | None:
    scales = [getattr(at, "SCB", None) for at in (w, getattr(module, "state", None))]
    scale = next((s for s in scales if s is not None), None)
    if scale is None or not isinstance(w, Tensor) or w.dtype is not torch.int8:
        return None
    return scale.float().to(w.device)


def compressed(module: nn.Module, w: Any, shape: Shape, steady: bool) -> Tensor | None:
    """compressed-tensors, in any of its formats, by the compressor that the layer's scheme names."""
    scheme = getattr(module, "quantization_scheme", None)
    if scheme is None or not type(scheme).__module__.startswith("compressed_tensors"):
        return None
    if isinstance(w, Tensor) and w.dtype in _FLOATS:
        return w.data  # unpacked
    return compressor(module, scheme).decompress(own_tensors(module), scheme).get("weight")


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the module alone; what holds them need not be a dict (compressed-tensors)."""
    held = {**module._parameters, **module._buffers}
    return {n: t.data for n, t in held.items() if t is not None}


def compressor(module: nn.Module, scheme: Any) -> Any:
    """What compressed-tensors packs and unpacks such a layer with."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format

    kind = scheme.format or infer_module_format(type(module), scheme)
    return BaseCompressor.get_value_from_registry(getattr(kind, "value", kind))


def float8(module: nn.Module, w: Any, shape: Shape, steady: bool) -> Tensor | None:
    """Fine-grained FP8 of DeepSeek, as transformers' layers hold it: value = code * scale of its block or of all."""
    scale = getattr(module, "weight_scale_inv", None)
    if not isinstance(w, Tensor) or not isinstance(scale, Tensor) or w.element_size() != 1 or w.dtype is torch.int8:
        return None
    return in_blocks(w.data.float(), scale.data.float(), getattr(module, "block_size", None))


def in_blocks(codes: Tensor, scale: Tensor, size: Any) -> Tensor:
    """Codes (..., out, inp) times the scale of their block: (..., rows, columns of blocks), or one for all."""
    if size is None:
        return codes * (scale if scale.dim() < 2 else scale.reshape(scale.shape[0], 1, 1))
    wide = scale.repeat_interleave(size[0], -2)[..., : codes.shape[-2], :]
    return codes * wide.repeat_interleave(size[1], -1)[..., : codes.shape[-1]]


def gguf(module: nn.Module, w: Any, shape: Shape, steady: bool) -> Tensor | None:
    """Blocks of a GGUF file, by transformers; a layer may read its input in another order."""
    if type(module).__name__ != "GgufLinear" or shape is None:
        return None
    from transformers.integrations.gguf.kernels import dequantize_blocks

    found = dequantize_blocks(w.data, module.ggml_type, *shape, torch.float32)  # type: ignore[arg-type]
    order: Any = getattr(module, "input_permutation", None)
    return found if order is None else torch.empty_like(found).index_copy_(1, order, found)


_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)  # where the columns 0 to 7 stand among the 4-bit codes of a number of 32 bits


def awq(module: nn.Module, w: Any, shape: Shape, steady: bool) -> Tensor | None:
    """AWQ's GEMM layout: qweight (d_in, d_out / 8), qzeros and scales for groups of rows; (code - zero) * scale."""
    held = [getattr(module, n, None) for n in ("qweight", "qzeros", "scales")]
    if shape is None or "wq" not in f"{type(module).__module__}.{type(module).__name__}".lower():
        return None
    qweight, qzeros, scales = held
    if not all(isinstance(t, Tensor) for t in held) or tuple(qweight.shape) != (shape[1], shape[0] // 8):  # type: ignore[union-attr]
        return None
    codes, zeros = _nibbles(qweight), _nibbles(qzeros)  # type: ignore[arg-type]
    group = shape[1] // scales.shape[0]  # type: ignore[union-attr]
    wide = [t.repeat_interleave(group, 0) for t in (zeros, scales.float())]  # type: ignore[union-attr]
    return ((codes - wide[0]) * wide[1]).T.contiguous()


def _nibbles(packed: Tensor) -> Tensor:
    shifts = torch.tensor(_AWQ, device=packed.device) * 4
    return (packed[..., None].bitwise_right_shift(shifts) & 15).flatten(-2).float()


def by_itself(module: nn.Module, w: Any, shape: Shape, steady: bool) -> Tensor | None:
    """By a function that the tensor or the layer has for it (torchao, quanto, HQQ, GPTQ); only if that gives the
    weight's shape. Some layers answer (d_in, d_out): of a square weight the layer's own answers tell which it is."""
    read = [getattr(w, "dequantize", None)] if type(w) not in (nn.Parameter, Tensor) else []
    own = [getattr(module, n, None) for n in ("dequantize", "dequantize_weight")]
    for one in filter(callable, read + own):
        found = _tried(one)
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() != 2 or shape is None:
            continue
        if tuple(found.shape) == shape:
            square = shape[0] == shape[1] and one in own
            return found.T if square and _turned(module, found) else found
        if tuple(found.shape) == shape[::-1]:
            return found.T
    return None


def _tried(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # of another library, for arguments or kernels that are not known here
        return None


def _turned(module: nn.Module, found: Tensor) -> bool:
    """Whether a square weight is the transposed one."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(2, found.shape[0], generator=g).to(found.device)
    x = torch.cat([rows, torch.zeros(62, len(found), device=found.device)])  # some kernels want 64 rows
    for dtype in (found.dtype, torch.float16, torch.float32):
        y = _tried(lambda dtype=dtype: module.forward(x.to(dtype)).float())
        if isinstance(y, Tensor) and y.shape == x.shape:
            y = y[:2] - y[2]
            off = [(y - rows @ w.float()).norm() for w in (found.T, found)]
            return bool(off[1] < off[0])
    return "gptq" in type(module).__module__  # it cannot run here


READERS = (four_bit, eight_bit, compressed, float8, gguf, awq, by_itself)
