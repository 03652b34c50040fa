"""What a base is known by: names, shapes and a few numbers of every parameter."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from ..formats.fingerprint import spread
from .names import named
from .packs import packed_in, parametrizations, slots
from .weights import dense, packed, sample, unpacked, widths

_SOME = 64


def of_base(model: nn.Module, heads: Collection[str] = (), rows: Mapping[int, int] | None = None) -> str:
    """32 hex digits of 64 values of every parameter but those of `heads`, rounded to bfloat16.

    rows: of parameters that have grown, by id, how many rows count.

    A packed layer counts by the numbers that its codes stand for, under the name and shape of the weight that was
    packed; one that cannot be read, by its codes. Adapters that the model carries count too.
    """
    h = hashlib.blake2b(digest_size=16)
    for name, shape, values in _parameters(model, heads, rows or {}):
        h.update(f"{name}{shape}".encode())
        h.update(values.detach().cpu().float().bfloat16().view(torch.int16).numpy().tobytes())
    return h.hexdigest()


def _some(values: Tensor) -> Tensor:
    return values.reshape(-1)[spread(_SOME if values.numel() else 0, values.numel()).to(values.device)]


def _parameters(
    model: nn.Module, heads: Collection[str], rows: Mapping[int, int]
) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """(name, shape, 64 values, of an empty one none), each once, in torch's order."""
    seen: set[int] = set()
    for name, module in named(model):
        start = f"{name}." if name else ""
        if packed(module) or unpacked(module):
            seen.update(map(id, module._parameters.values()))
            if name not in heads:
                yield from _packed(name, start, module)
            continue
        for key, p in module._parameters.items():
            if p is None or id(p) in seen:
                continue
            seen.add(id(p))
            if name not in heads:
                values = dense(module, key, f"{start}{key}", steady=True)
                n = rows.get(id(p), len(p) if p.dim() else 1)
                yield f"{start}{key}", (n, *p.shape[1:]) if p.dim() else (), _some(values[:n] if p.dim() else values)
        for slot in slots(module):  # experts that a kernel keeps in no parameter
            if slot not in {**module._parameters, **parametrizations(module)} and (pack := packed_in(module, slot)):
                yield f"{start}{slot}", pack.shape, _some(pack.open()(0))
    for name, p in model.named_parameters():  # of adapters
        if id(p) not in seen:
            seen.add(id(p))
            yield name, tuple(p.shape), _some(p.full_tensor() if hasattr(p, "full_tensor") else p)  # type: ignore


def _packed(name: str, start: str, module: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    try:
        out, inp = widths(module) or (0, 0)
        yield f"{start}weight", (out, inp), sample(module, spread(_SOME, out * inp), where=name)
    except CommonweightError:
        held = {**module._parameters, **module._buffers}
        for key, t in held.items():
            if isinstance(t, Tensor) and key != "bias" and t.device.type != "meta":
                yield f"{start}{key}", tuple(t.shape), _some(t)
    if isinstance(module._parameters.get("bias"), Tensor):
        bias = dense(module, "bias", name)
        yield f"{start}bias", tuple(bias.shape), _some(bias)
