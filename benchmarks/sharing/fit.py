"""Of every method, the options with which it comes as near to so many bytes as it can, from below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from commonweight import CommonweightError
from commonweight.builder import Anatomy, Layout
from commonweight.share.cost import laid_out, original
from commonweight.share.methods import available, resolve

ROOM = 1.02  # a little more than the target is allowed: layers come whole
LEAST = 0.75  # a method that comes out far smaller than the target is no comparison at equal bytes
FREE = {  # what may grow until the target is reached, beside the sizes that the method names itself
    "recursive": [({"loops": 3, "share_norms": False}, "relax"), ({"loops": 5, "share_norms": False}, "relax")],
}


class Fitted(NamedTuple):
    method: str
    options: dict[str, Any]
    bytes: int  # of the blocks, as the original's format has them


def fitted(about: Anatomy, share: float) -> list[Fitted]:
    """One for every method that reaches `share` of the bytes of the blocks; of `recursive` also the relaxed form."""
    target = share * original(about).nbytes
    out = []
    for name in available():
        found = [f for f in tried(about, name) if LEAST * target <= f.bytes <= ROOM * target]
        if found:
            out.append(max(found, key=lambda f: f.bytes))
        grown = [f for base, free in FREE.get(name, []) if (f := grow(about, name, base, free, target)) is not None]
        out += [f for f in grown if f.options != (out[-1].options if out else None)]
    return out


def tried(about: Anatomy, name: str) -> Iterator[Fitted]:
    for options in available()[name].sizes(about.depth):
        if (size := bytes_of(about, name, options)) is not None:
            yield Fitted(name, options, size)


def grow(about: Anatomy, name: str, base: dict[str, Any], free: str, target: float) -> Fitted | None:
    """The largest value of the option `free` within the target, by halving; None where 1 is too much."""
    low, high, best = 1, 4096, None
    while low <= high:
        middle = (low + high) // 2
        size = bytes_of(about, name, {**base, free: middle})
        if size is not None and size <= ROOM * target:
            best, low = Fitted(name, {**base, free: middle}, size), middle + 1
        else:
            high = middle - 1
    return best


def bytes_of(about: Anatomy, name: str, options: dict[str, Any]) -> int | None:
    layout = layout_of(about, name, options)
    return None if layout is None else layout.nbytes


def layout_of(about: Anatomy, name: str, options: dict[str, Any]) -> Layout | None:
    """None where this model has no place for it."""
    method, config = resolve(name, options)
    try:
        return laid_out(method, about, config)
    except CommonweightError:
        return None
