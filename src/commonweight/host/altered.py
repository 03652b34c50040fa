"""Whether the weights of a quantised model are those that lie on disk, as far as some of each tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..formats.fingerprint import spread
from .disk import Disk
from .names import named
from .packs import four_bit, packed_in, slots
from .weights import packed, plain, sample, stored, unpacked, widths

_BLOCKS, _ROWS, _EXPERTS = 16, 2, 2  # of each weight that is packed
Kept = dict[Any, Any]


def altered(disk: Disk, model: nn.Module, kept: Kept) -> bool:
    """Whether a weight is another than the one of its name on disk: a plain one by 8 numbers, a packed one by 16 blocks
    or two rows within what its format loses, see `_lost`. kept: numbers on disk that were read before.

    Cost: those numbers; of a layer that bitsandbytes did not pack, one reading of the whole.
    """
    for name, module in named(model):
        whole = packed(module) and not unpacked(module)
        if whole and _layer(disk, name, module, kept):
            return True
        for key, p in module._parameters.items():
            if p is None or not plain(p) or not p.numel() or (key == "weight" and (whole or unpacked(module))):
                continue
            places = spread(8, p.numel())
            there = _there(disk, f"{name}.{key}" if name else key, tuple(p.shape), places, kept)
            if there is None:
                continue
            here = p.detach().reshape(-1)[places.to(p.device)].cpu()
            if not torch.allclose(here.float(), there.to(here.dtype).float(), rtol=2e-2, atol=1e-6):
                return True
        if any(_experts(disk, name, module, slot, kept) for slot in slots(module)):
            return True
    return False


def turned(module: nn.Module) -> bool:
    """Whether a layer has taken the place of one that kept its weight as (inp, out): GPT-2's Conv1D."""
    return any(k.__name__ == "Conv1D" for k in getattr(getattr(module, "source_cls", None), "__mro__", ()))


def _layer(disk: Disk, name: str, module: nn.Module, kept: Kept) -> bool:
    out, inp = widths(module) or (0, 0)
    w = stored(module)
    state = getattr(w, "quant_state", None)
    size = inp if state is None else state.blocksize
    places = _blocks(out * inp, size, _ROWS if state is None else _BLOCKS)
    shape, at = (out, inp), places
    if turned(module):
        shape, at = (inp, out), places % inp * out + places // inp
    there = _there(disk, f"{name}.weight" if name else "weight", shape, at, kept)
    if there is None:
        return False
    here = sample(module, places, where=name)
    return _lost(here, there, size, state, _bits(module, w))


def _experts(disk: Disk, name: str, module: nn.Module, slot: str, kept: Kept) -> bool:
    """Those of one projection in one tensor."""
    p = module._parameters.get(slot)
    if (p is not None and (plain(p) or p.device.type == "meta")) or (pack := packed_in(module, slot)) is None:
        return False
    count, out, inp = pack.shape
    a, b = (inp, out) if pack.turned else (out, inp)
    state = four_bit(module, slot)
    size = b if state is None or b % state.blocksize else state.blocksize
    places, read = _blocks(a * b, size, _ROWS if state is None else _BLOCKS), pack.open()
    for e in spread(_EXPERTS, count).unique().tolist():
        there = _there(disk, f"{name}.{slot}" if name else slot, (count, a, b), places + e * a * b, kept)
        if there is None:
            return False
        w = read(e)
        here = (w.T if pack.turned else w).reshape(-1)[places.to(w.device)]
        if _lost(here, there, size, state, 4):
            return True
    return False


def _lost(here: Tensor, there: Tensor, size: int, state: Any, bits: int) -> bool:
    """Whether packing does not lose what these blocks have lost.

    The largest number of a block is kept by bitsandbytes' four bits, but for the rounding of what scales the block; of
    eight each number within half a step. Of others it is known what such a number of bits loses in the mean.
    """
    here, there = here.float().cpu().view(-1, size), there.float().cpu().view(-1, size)
    most, at = there.abs().max(1, keepdim=True)
    if state is not None and size == state.blocksize:
        lost = (here.gather(1, at) - there.gather(1, at)).abs()
        if state.nested:  # scales are rounded by eight bits of the largest of their group
            return bool((lost > 0.006 * most + 0.01 * float(state.state2.absmax.max())).any())
        if getattr(state, "original_nested", False):  # and the groups are gone
            return bool((lost / most.clamp_min(1e-12)).median() > 0.2)
        return bool((lost > 0.006 * most).any())
    if bits == 0:
        return bool(((here - there).abs() > 0.0045 * most + 0.004 * there.abs()).any())
    return bool((here - there).norm() > min(max(3.2 / 2**bits, 0.08), 0.8) * there.norm())


def _bits(module: nn.Module, w: Any) -> int:
    """Of a number of a packed layer, 4 where it does not say; 0 for bitsandbytes' eight."""
    if type(module).__module__.startswith("bitsandbytes"):
        return 0
    said: Any = getattr(module, "meta", None)  # HQQ's
    bits = said.get("nbits") if isinstance(said, dict) else getattr(getattr(w, "qtype", None), "bits", None)  # quanto's
    return bits if isinstance(bits, int) else 4


def _blocks(total: int, size: int, count: int) -> Tensor:
    """Places of some whole blocks."""
    return (spread(count, max(total // size, 1))[:, None] * size + torch.arange(min(size, total))).reshape(-1)


def _there(disk: Disk, name: str, shape: tuple[int, ...], places: Tensor, kept: Kept) -> Tensor | None:
    """Numbers of a weight on disk; None where none of this shape lies there in floating point."""
    key = name, shape, int(places[0])
    if key not in kept:
        kept[key] = _read(disk, name, shape, places)
    return kept[key]


def _read(disk: Disk, name: str, shape: tuple[int, ...], places: Tensor) -> Tensor | None:
    try:
        held = disk.find(name, shape)
    except LookupError:  # a head that is new
        return None
    if held.shape != shape:
        return None
    found = held.flat(places)
    return found if found.is_floating_point() and found.element_size() > 1 else None
