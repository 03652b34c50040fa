"""What several tenants read at one site, laid one behind the other for one batched product."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..address import OfTask
from .tenant import Entry

LARGEST = 1 << 26  # bytes of one stack in a room; above it, new memory costs little beside the copying


class Room:
    """Memory that stacks of all sites are laid into in turn, so that a pass over new rows touches no new pages.

    What lies in it holds until the next stack of the same name. Only without gradients, and only on the CPU: an
    allocator of device memory keeps its pages by itself. One per thread.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        n = math.prod(shape)
        if n * dtype.itemsize > LARGEST:
            return None
        held = self._held.get((name, dtype))
        if held is None or held.numel() < n:
            with torch.inference_mode(False):  # else it could not be written outside of inference mode
                held = self._held[name, dtype] = torch.empty(n, dtype=dtype)
        return held[:n].view(shape)


def stack(
    entries: list[Entry], dtype: torch.dtype, reader: Tensor | None, room: Room | None = None
) -> dict[str, Tensor]:
    """Every slot with a leading dimension, one per place; a read that all have in common is done and held once.

    reader: per place, which of `entries` it reads; None: the i-th place the i-th. room: where to lay them, else
    they get memory of their own.
    """
    n = len(entries) if reader is None else len(reader)
    out = {}
    for i, (k, _, _) in enumerate(entries[0].reads):
        v = entries[0].read(i)
        cast = dtype if v.is_floating_point() and not entries[0].precise else v.dtype
        if _common(entries, i):
            out[k] = v.to(cast).expand(n, *v.shape)
            continue
        lay = room if v.device.type == "cpu" else None
        place = None if lay is None else lay(k, (len(entries), *v.shape), cast)
        stacked = torch.stack([v, *(e.read(i) for e in entries[1:])], out=place).to(cast)
        if reader is not None:
            place = None if lay is None else lay(f"{k} by place", (n, *v.shape), cast)
            stacked = torch.index_select(stacked, 0, reader, out=place)
        out[k] = stacked
    return out


def _common(entries: list[Entry], i: int) -> bool:
    """Whether all read the same there, and nobody trains it."""
    _, address, pools = entries[0].reads[i]
    if pools[0].requires_grad or any(a is not b for e in entries for a, b in zip(e.reads[i][2], pools)):
        return False
    return type(address) is not OfTask or all(e.reads[i][1].task == address.task for e in entries)
