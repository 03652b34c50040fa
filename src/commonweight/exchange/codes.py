"""Several tensors as one row of bytes, by a codec of stored tenants, and back. Nothing here knows of rounds or methods.

The bytes: those of the tensors, one behind the other. Where a codec's bytes depend on the numbers, four bytes for each
tensor come before them, which say how many it has; of l-greco one more each, which says which codec it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from ..core import CommonweightError
from ..core.ternary import ternary
from ..formats.codecs import Codec, Compeft, get
from .lgreco import choose
from .local import of_codec
from .message import Part, Refused

LEVELS = (*(f"compeft:density={d}" for d in (0.05, 0.1, 0.2, 0.5)), "int4", "int8")  # of l-greco
GRECO = "l-greco"

Shapes = Mapping[str, tuple[int, ...]]
codec_of = cache(get)  # of a name


def wrong(codec: str) -> str | None:
    """What is wrong with a codec's name or options; None: nothing."""
    if why := of_codec(codec):
        return why
    try:
        if codec != GRECO:
            get(codec)
    except CommonweightError as e:
        return str(e)
    return None


def encode(codec: Codec, value: Tensor) -> Tensor:
    """Of compeft the signs times the mean of the kept magnitudes, which is of least squared error. A stored tenant
    keeps the norm instead, and can err by more than all of it: at densities of 0.1 and less what is lost would grow
    without end."""
    if isinstance(codec, Compeft):
        signs, _ = ternary(value, codec.density)
        value = signs * ((signs * value.double()).sum() / signs.abs().sum().clamp(min=1))
    return codec.encode(value.float(), None).contiguous().view(torch.uint8).flatten()


def decode(name: str, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Raises: CommonweightError for what the codec does not write; Refused for numbers that are not finite."""
    stored = stored.clone()
    value = codec_of(name).decode(
        stored.view(torch.bfloat16).view(shape) if name == "bfloat16" else stored, shape, None
    )  # fmt: skip
    if not value.isfinite().all():
        raise Refused("not finite", f"its {name} decodes to NaN or infinity")
    return value


def longest(name: str, n: int) -> int:
    """Bytes of n numbers, at most."""
    if name.startswith("compeft"):  # its places as a bit mask, and the signs
        return 11 + -(-n // 8) + -(-max(1, round(getattr(codec_of(name), "density") * n)) // 8) + 1  # noqa: B009
    return {"bfloat16": 2 * n, "int8": 2 * -(-n // 64) + n, "int4": 2 * -(-n // 64) + -(-n // 2)}[name]


def varies(codec: str) -> bool:
    return codec.startswith(("compeft", GRECO))


def head(codec: str, tensors: int) -> int:
    """Bytes before those of the tensors."""
    return tensors * (4 * varies(codec) + (codec == GRECO))


def most(codec: str, shapes: Shapes) -> int:
    """Bytes of all, at most; exactly so many where they do not vary."""
    names = LEVELS if codec == GRECO else (codec,)
    each = (max(longest(one, math.prod(s)) for one in names) for s in shapes.values())
    return head(codec, len(shapes)) + sum(each)


def part(codec: str, shapes: Shapes) -> Part:
    """Of a message."""
    n = most(codec, shapes)
    return Part((None,), "uint8", n) if varies(codec) else Part((n,), "uint8")


def write(codec: str, values: Mapping[str, Tensor]) -> Tensor:
    """uint8 (bytes,). Order: that of the mapping."""
    if not values:
        return torch.empty(0, dtype=torch.uint8)
    each, which = _each(codec, values)
    front = []
    if varies(codec):
        front = [torch.tensor([len(b) for b in each], dtype=torch.int32).view(torch.uint8)]
    if which is not None:
        front.append(torch.tensor(which, dtype=torch.uint8))
    return torch.cat([*front, *each])


def _each(codec: str, values: Mapping[str, Tensor]) -> tuple[list[Tensor], list[int] | None]:
    if codec != GRECO:
        return [encode(codec_of(codec), v) for v in values.values()], None
    every = [[encode(codec_of(one), v) for one in LEVELS] for v in values.values()]
    errors = [
        [float((decode(one, b, tuple(v.shape)) - v).double().square().sum()) for one, b in zip(LEVELS, row)]
        for row, v in zip(every, values.values())
    ]
    budget = sum(e[LEVELS.index("int4")] for e in errors) * 1.01  # the errors' rounding up to bins
    which = choose([[len(b) for b in row] for row in every], errors, budget)
    which = which or [LEVELS.index("int8")] * len(every)
    return [row[c] for row, c in zip(every, which)], which


def take(codec: str, shapes: Shapes, stored: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """(the tensors, the bytes behind theirs). Raises: Refused for what `write` does not write."""
    n, names = len(shapes), [codec] * len(shapes)
    if len(stored) < head(codec, n):
        raise Refused("wrong shape", f"its {codec} is cut off")
    lengths = [longest(codec, math.prod(s)) for s in shapes.values()] if not varies(codec) else []
    if varies(codec):
        lengths, stored = stored[: 4 * n].clone().view(torch.int32).tolist(), stored[4 * n :]
    if codec == GRECO:
        which, stored = stored[:n].tolist(), stored[n:]
        if max(which, default=0) >= len(LEVELS):
            raise Refused("wrong shape", f"it names codec {max(which)} of {len(LEVELS)}")
        names = [LEVELS[c] for c in which]
    if min(lengths, default=0) < 0 or sum(lengths) > len(stored):
        raise Refused("wrong shape", "its lengths are not those of its bytes")
    *parts, rest = stored.split([*lengths, len(stored) - sum(lengths)])
    try:
        return {n: decode(one, b, s) for (n, s), one, b in zip(shapes.items(), names, parts)}, rest
    except Refused:
        raise
    except CommonweightError as e:
        raise Refused("wrong shape", f"its {codec} cannot be read ({e})") from e


def read(codec: str, shapes: Shapes, stored: Tensor) -> dict[str, Tensor]:
    """All of the bytes. Raises: Refused."""
    out, rest = take(codec, shapes, stored)
    if len(rest):
        raise Refused("wrong shape", "its lengths are not those of its bytes")
    return out


def plain(shapes: Shapes, stored: Tensor) -> dict[str, Tensor]:
    """float32 numbers of all, as they are. Raises: Refused."""
    sizes = [math.prod(s) for s in shapes.values()]
    if len(stored) != 4 * sum(sizes):
        raise Refused("wrong shape", f"{len(stored):,} bytes; wanted {4 * sum(sizes):,}")
    parts = stored.clone().view(torch.float32).split(sizes)
    if not all(v.isfinite().all() for v in parts):
        raise Refused("not finite", "it holds NaN or infinity")
    return {n: v.view(s) for v, (n, s) in zip(parts, shapes.items())}
