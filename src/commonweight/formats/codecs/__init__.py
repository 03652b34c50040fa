"""Codecs: how the numbers of a pool are stored in fewer bytes. Pure functions from tensor to tensor.

A codec is a frozen config with

- ``encode(value, first) -> stored``: value float32 of any shape; stored of another dtype, mostly bytes (uint8);
- ``decode(stored, shape, first) -> value``: float32. Raises: CommonweightError for what `encode` does not write;

`first`: the pool's values before training, where every reader can make them anew, else None. ``uses_first``: what is
coded is value - first, which is smaller. ``needs_first``: it means nothing else. ``dtype``: that of the
pools that it is for, where they are not of float32.

The law: ``encode(decode(encode(v)))`` has the bytes of ``encode(v)``, so that a file that is loaded and saved again by
the same codec does not change. It needs `first` to be the same, and changes that float32 adds to it almost exactly:
those smaller than 2**-13 of the first values beside them are stored as no change.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor

from ...core import CommonweightError, build, parse, unknown
from .absmax import Int4, Int8
from .compeft import Compeft
from .floats import Bfloat16
from .onebit import OneBit
from .ordered import Ordered


class Codec(Protocol):
    uses_first: ClassVar[bool]
    needs_first: ClassVar[bool]

    def encode(self, value: Tensor, first: Tensor | None) -> Tensor: ...

    def decode(self, stored: Tensor, shape: tuple[int, ...], first: Tensor | None) -> Tensor: ...


CODECS: dict[str, Any] = {
    "bfloat16": Bfloat16, "int8": Int8, "int4": Int4, "compeft": Compeft, "onebit": OneBit, "ordered": Ordered,
}  # fmt: skip


def get(codec: Any) -> Codec:
    """A codec from its name, from ``"compeft:density=0.1"`` (options after a colon, commas between), or itself."""
    if isinstance(codec, str):
        name, _, options = codec.partition(":")
        if name not in CODECS:
            raise unknown("codec", name, CODECS)
        return build(CODECS[name], parse(CODECS[name], options.split(",") if options else []))
    if type(codec) in CODECS.values():
        return codec
    raise CommonweightError(f"codec is {codec!r}; wanted one of {', '.join(CODECS)}, or a mapping from pools to them")


def name(codec: Codec) -> str:
    return next(n for n, cls in CODECS.items() if type(codec) is cls)


__all__ = ["CODECS", "Bfloat16", "Codec", "Compeft", "Int4", "Int8", "OneBit", "Ordered", "get", "name"]
