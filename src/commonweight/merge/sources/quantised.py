"""Quantised checkpoints as sources: weights are dequantised as they are read, in float32.

bitsandbytes 4-bit (nf4, fp4; absmax plain or quantised itself) and GPTQ of 4 or 8 bits. What rounding took away stays
away: this is the quantised model, not the one that it was made of.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, counted
from .source import Files, Source, held, read_json

_STATE = ".quant_state.bitsandbytes__"
_INT = (torch.int32, torch.int64)
_KINDS = {  # of what GPTQ has for a weight
    "qweight": _INT[:1], "qzeros": _INT[:1], "scales": (torch.float16, torch.bfloat16, torch.float32), "g_idx": _INT
}  # fmt: skip
_KEPT = 4  # packed matrices at hand: what threads work on at one time


class _Four(NamedTuple):
    """A 4-bit weight: two values a byte, the first in the upper half; value = code[half byte] * absmax of its block."""

    shape: tuple[int, ...]
    block: int
    code: Tensor
    nested: tuple[Tensor, Tensor, int, float] | None  # absmax = code[byte] * absmax of its block + offset


class _Gptq(NamedTuple):
    """weight[o, i] = scale[g, o] (q[i, o] - zero[g, o]) with g = group[i]."""

    shape: tuple[int, int]
    bits: int
    scale: Tensor
    zero: Tensor
    group: Tensor


class Quantised:
    """A Source over another; what says how weights were rounded is not seen. how: in words, for a notice.

    Memory: beside the piece, for GPTQ four packed matrices, for their rows lie across.
    """

    def __init__(self, packed: Source, config: Mapping[str, Any]):
        self.label, self.files, self._packed, self._lock = packed.label, packed.files, packed, Lock()
        self._four, self._gptq = _fours(packed), _gptqs(packed, config)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        inner = {n for n in packed.shapes if any(n.startswith(f"{w}.") for w in self._four)}
        inner |= {
            f"{n.removesuffix('weight')}{x}" for n in self._gptq for x in ("qweight", "qzeros", "scales", "g_idx")
        }
        made = {**self._four, **self._gptq}
        kind, many = "bitsandbytes 4-bit" if self._four else "GPTQ", "s" if len(made) > 1 else ""
        self.how = f"{kind}: {len(made)} weight{many} dequantised on reading"
        plain = {n: s for n, s in packed.shapes.items() if n not in inner}
        self.shapes: Mapping[str, tuple[int, ...]] = {**plain, **{n: m.shape for n, m in made.items()}}
        self.dtypes: Mapping[str, torch.dtype] = {
            n: torch.float32 if n in made else packed.dtypes[n] for n in self.shapes
        }

    def flat(self, name: str, start: int, count: int) -> Tensor:
        if name in self._four:
            return self._four_bit(name, self._four[name], start, count)
        if name in self._gptq:
            return self._rows(name, self._gptq[name], start, count)
        return self._packed.flat(name, start, count)

    def read(self, name: str) -> Tensor:
        return self.flat(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def where(self, name: str) -> str:
        return self.label

    def ahead(self, name: str) -> None:
        if name in self._packed.shapes:
            self._packed.ahead(name)

    def held(self, count: int, threads: int) -> int:
        """Tables of scales, packed matrices of GPTQ, and what a piece is unpacked through: 64 bytes an element."""
        tables = sum(t.nbytes for q in self._gptq.values() for t in (q.scale, q.zero, q.group))
        tables += sum(t.nbytes for q in self._four.values() for t in (q.code, *(q.nested or ())[:2]))
        packed = sorted((math.prod(q.shape) * q.bits // 8 for q in self._gptq.values()), reverse=True)
        return tables + sum(packed[: _KEPT + 1]) + 64 * count * threads + held(self._packed, count, threads)

    def _four_bit(self, name: str, q: _Four, start: int, count: int) -> Tensor:
        first, last = start // 2, -(-(start + count) // 2)
        size = self._packed.dtypes[name].itemsize  # bytes may be stored as numbers of another type
        a, b = first // size, -(-last // size)
        data = self._packed.flat(name, a, b - a).view(torch.uint8)[first - a * size : last - a * size]
        halves = torch.stack((data >> 4, data & 15), 1).view(-1)[start - 2 * first :][:count]
        low, high = start // q.block, -(-(start + count) // q.block)
        absmax = self._packed.flat(f"{name}.absmax", low, high - low)
        if q.nested is not None:
            code, scale, block, offset = q.nested
            absmax = code[absmax.long()] * scale[torch.arange(low, high) // block] + offset
        at = torch.arange(start, start + count) // q.block - low
        return q.code[halves.long()] * absmax.float()[at]

    def _rows(self, name: str, q: _Gptq, start: int, count: int) -> Tensor:
        width = q.shape[1]
        first, last = start // width, -(-(start + count) // width)
        packed = self._matrix(f"{name.removesuffix('weight')}qweight")[:, first:last]
        values = _unpacked(packed.T, q.bits)  # (rows, d_in): inputs are packed along the first dimension
        scale, zero = q.scale[:, first:last], q.zero[:, first:last]
        out = scale[q.group].T * (values - zero[q.group].T)
        return out.reshape(-1)[start - first * width :][:count]

    def _matrix(self, name: str) -> Tensor:
        """Packed; rows of the weight are its columns, so that it is read whole."""
        with self._lock:
            if name not in self._kept:
                self._kept[name] = self._packed.read(name)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[name]


_ODD = (".SCB", ".weight_scale_inv", ".weight_packed")


def is_quantised(source: Source) -> bool:
    return any(_STATE in n or n.endswith((".qweight", *_ODD)) for n in source.shapes)


def opened(source: Files, config: Mapping[str, Any], path: Path) -> Source:
    """The source, or what dequantises it. path: of the model, beside whose config.json older GPTQ models have another
    file. Raises: CommonweightError for other kinds of quantisation, by name, and for GPTQ of an unknown form."""
    about = config.get("quantization_config") or {}
    if not isinstance(about, Mapping):
        raise CommonweightError(
            f"{source.label}: quantization_config in its config.json is a {type(about).__name__}; wanted an object"
        )
    kind = about.get("quant_method")
    packed = is_quantised(source)
    if kind in (None, "bitsandbytes", "gptq"):
        odd = next((n for n in source.shapes if n.endswith(_ODD)), None)
        if odd is None and (kind is None or packed):
            return Quantised(source, _form(source, about, path)) if packed else source
        kind = f"{kind or 'a kind'} ({odd or 'without the tensors of 4-bit weights'})"
    raise CommonweightError(
        f"{source.label}: its weights are quantised by {kind}; bitsandbytes 4-bit and GPTQ are read: save it "
        "dequantised first"
    )


def _form(source: Source, about: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """What is said of the weights. Of GPTQ it must be said, for gptq and gptq_v2 have the same tensors, and zeros that
    differ by one; where neither word is there, it is the older."""
    if not any(n.endswith(".qweight") for n in source.shapes):
        return about
    beside = read_json((path if path.is_dir() else path.parent) / "quantize_config.json")
    if not about and not beside:
        raise CommonweightError(
            f"{source.label}: its weights are packed by GPTQ, and no config.json says in which form; give the folder "
            "with its config.json"
        )
    form = about.get("checkpoint_format") or beside.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise CommonweightError(
            f"{source.label}: its weights are packed by GPTQ in the form {form!r}; gptq and gptq_v2 are read: save it "
            "in one of them"
        )
    return {**about, "checkpoint_format": form}


def _fours(source: Source) -> dict[str, _Four]:
    out = {}
    for key in source.shapes:
        name, found, kind = key.partition(_STATE)
        if not found:
            continue
        try:
            about = json.loads(bytes(source.read(key).tolist()))
            shape, block = tuple(map(int, about["shape"])), int(about["blocksize"])
            blocks = -(-math.prod(shape) // block)
            nested = None
            if "nested_blocksize" in about:
                code, scale = (source.read(f"{name}.nested_{x}").float() for x in ("quant_map", "absmax"))
                nested = (code, scale, int(about["nested_blocksize"]), float(about["nested_offset"]))
                bytewise = source.dtypes[f"{name}.absmax"] == torch.uint8 and code.shape == (256,)
                if not bytewise or scale.shape != (-(-blocks // nested[2]),):
                    raise ValueError(
                        f"{len(scale)} scales of scales, {counted(len(code), 'value')}, for {blocks} blocks"
                    )
            out[name] = q = _Four(shape, block, source.read(f"{name}.quant_map").float(), nested)
            held = math.prod(source.shapes[name]) * source.dtypes[name].itemsize * 2
            if min(shape) < 1 or held < math.prod(shape) or q.code.shape != (16,):
                raise ValueError(f"{counted(held, 'value')} for a weight of shape {shape}")
            if math.prod(source.shapes[f"{name}.absmax"]) != blocks:
                raise ValueError(f"{source.shapes[f'{name}.absmax']} scales for {blocks} blocks")
        except (ValueError, KeyError, TypeError, ZeroDivisionError, AttributeError, RecursionError) as e:
            raise CommonweightError(f"{name}: {source.label} says of its {kind} weight what does not fit: {e}") from e
    return out


def _gptqs(source: Source, about: Mapping[str, Any]) -> dict[str, _Gptq]:
    """A zero is stored as one less, but for the newer format gptq_v2."""
    out, less = {}, 0 if about.get("checkpoint_format") == "gptq_v2" else 1
    for key in (k for k in source.shapes if k.endswith(".qweight")):
        at = key.removesuffix("qweight")
        try:
            rows, d_out = source.shapes[key]
            groups, out_too = source.shapes[f"{at}scales"]
            _, packed = source.shapes[f"{at}qzeros"]
            for x, kinds in _KINDS.items():
                if source.dtypes.get(at + x, kinds[0]) not in kinds:
                    raise ValueError(f"{x} of {source.dtypes[at + x]}; wanted {kinds[0]}")
            bits = 32 * packed / out_too
            if bits not in (4, 8) or out_too != d_out:
                raise ValueError(
                    f"{bits:g} bits, {out_too} columns of scales for {d_out}; 4 and 8 bits of GPTQ are read"
                )
            d_in = rows * 32 // int(bits)
            zero = _unpacked(source.read(f"{at}qzeros"), int(bits)) + less
            group = torch.arange(d_in) // -(-d_in // groups)
            if f"{at}g_idx" in source.shapes:
                group = source.read(f"{at}g_idx").long()
            if (
                group.shape != (d_in,)
                or zero.shape != (groups, d_out)
                or not 0 <= int(group.min()) <= int(group.max()) < groups
            ):
                raise ValueError(f"groups {tuple(group.shape)}, zeros {tuple(zero.shape)}")
        except (ValueError, KeyError, ZeroDivisionError, IndexError) as e:
            raise CommonweightError(f"{key}: {source.label} has a packed weight that does not fit: {e}") from e
        out[f"{at}weight"] = _Gptq((d_out, d_in), int(bits), source.read(f"{at}scales").float(), zero, group)
    return out


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """int32 (n, m) -> (n, m 32 / bits): the lowest bits come first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed[:, :, None] >> shifts) & (2**bits - 1)).reshape(len(packed), -1)
