"""Which tensor of a tenant's file is stored by which codec, and the one place where values pass through them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError, Plan, Pool, Rng, fits
from .codecs import Codec, OneBit, Ordered, get, name
from .codecs.onebit import two_levels

Layout = Mapping[str, Sequence[str]]
PLACES = "+ordered"  # after a codec's name: the int32 pools are packed beside it
Choice = str | Codec | Mapping[str, str | Codec | None] | None


class _NoBase:
    """Stands where an init looks at the base: such first values are not the same on every machine."""

    def __getattr__(self, _: str) -> Any:
        raise LookupError


def choose(plan: Plan, layout: Layout, choice: Choice) -> dict[str, Codec]:
    """Tensor of the file -> its codec.

    choice: one codec, for all trainable float32 pools (`ordered`: for all int32 pools); or a mapping from patterns over
    pool names (globs joined by ``|``; the first that fits counts) to codecs, None for as it is. A codec is for pools of
    its own dtype alone; beside one of float32 the int32 pools that no pattern names are packed by `ordered`, which
    loses nothing.
    Raises: CommonweightError for an unknown codec, a pattern that fits no such pool or a part of a stacked tensor.
    """
    if choice is None:
        return {}
    if not isinstance(choice, Mapping):
        codec = get(choice.removesuffix(PLACES) if isinstance(choice, str) else choice)
        places = {} if _dtype(codec) != "float32" else _alone(plan, layout, Ordered())
        return {**_alone(plan, layout, codec), **places}
    wanted = {pattern: None if codec is None else get(codec) for pattern, codec in choice.items()}
    beside = Ordered() if any(c is not None and _dtype(c) == "float32" for c in wanted.values()) else None
    for pattern, codec in wanted.items():
        able = [n for names in layout.values() if _suits(plan, names, codec) for n in names]
        if not isinstance(pattern, str) or not any(_fits(n, pattern) for n in able):
            some = f"; it has {', '.join(able[:3])}, ..." if able else ""
            raise CommonweightError(f"codec: {pattern!r} matches no saved {_kind(codec)}pool of this tenant{some}")
    out = {}
    for key, names in layout.items():
        mine = {p: c for p, c in wanted.items() if _suits(plan, names, c)}
        other = None if _float(plan, names) or not _suits(plan, names, beside) else beside
        found = [next((c for p, c in mine.items() if _fits(n, p)), other) for n in names]
        if found.count(found[0]) != len(found):
            unlike = names[next(i for i, c in enumerate(found) if c != found[0])]
            raise CommonweightError(
                f"codec: {names[0]} and {unlike} lie in one tensor, {key}, but have different codecs; "
                "write a pattern that fits both"
            )
        if found[0] is not None:
            out[key] = found[0]
    return out


def told(plan: Plan, layout: Layout, chosen: Mapping[str, Codec]) -> str | dict[str, str]:
    """What the header says: one name, with `PLACES` or not, where `read` comes to the same; else tensor -> name."""
    names = {k: name(c) for k, c in chosen.items()}
    for one in sorted(set(names.values())):
        for text in (one, one + PLACES):
            if names == {k: name(c) for k, c in _said(plan, layout, text).items()}:
                return text
    return names


def fits_header(value: Any) -> bool:
    """Whether a header's ``codec`` is of the form that `told` writes; names are looked at by `read`."""
    return isinstance(value, str) or (
        isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
    )


def read(where: str, plan: Plan, layout: Layout, said: str | Mapping[str, str] | None) -> dict[str, Codec]:
    """What `told` said. Raises: CommonweightError, with `where`, for codecs or tensors that are not known."""
    try:
        if said is None or isinstance(said, str):
            return {} if said is None else _said(plan, layout, said)
        found = {k: get(v) for k, v in said.items()}
        for k, codec in found.items():
            if k not in layout or not _suits(plan, layout[k], codec):
                raise CommonweightError(
                    f"its header names a codec for {k}, which is not a {_dtype(codec)} tensor of it"
                )
        return found
    except CommonweightError as e:
        raise CommonweightError(f"{where}: {e}") from e


def _said(plan: Plan, layout: Layout, text: str) -> dict[str, Codec]:
    """By a header's one name: without `PLACES` it is for pools of its own dtype alone, as in older files."""
    out = _alone(plan, layout, get(text.removesuffix(PLACES)))
    return {**out, **_alone(plan, layout, Ordered())} if text.endswith(PLACES) else out


def _alone(plan: Plan, layout: Layout, codec: Codec) -> dict[str, Codec]:
    return {k: codec for k, names in layout.items() if _suits(plan, names, codec) and _usual(plan, names)}


def pack(plan: Plan, key: str, names: Sequence[str], value: Tensor, codec: Codec, common: bool) -> Tensor:
    """A tensor as the file holds it: coded, or as it is where that is no larger, and where it has more values than the
    two of a matrix that `onebit` stores. value: the pools, stacked.

    common: the tenant is one of a common, whose pools of scope `shared` all write alike: no seed is theirs.
    Raises: CommonweightError for numbers too large for the codec, and where it needs first values and has none.
    """
    first = _first(plan, names, codec, common, tuple(value.shape))
    if codec.needs_first and first is None:
        raise CommonweightError(
            f"pool {names[0]}: {name(codec)} stores what training changed, and this pool has no first values that "
            "every reader can rebuild (they come from the base, or it belongs to a common, or it is frozen); give it "
            'another codec: {"*.R": "compeft", "*": "int8"}'
        )
    if isinstance(codec, OneBit) and not two_levels(value):
        return value
    stored = codec.encode(value, first)
    if not codec.decode(stored, tuple(value.shape), first).isfinite().all():
        largest = value.abs().max().item()
        raise CommonweightError(f"pool {names[0]}: {largest:g} is too large for the codec {name(codec)}; leave it out")
    return stored if stored.nbytes < value.nbytes else value


def most(pool: Pool) -> int:
    """Bytes of an int32 pool by `ordered`, at most: which numbers it has, beyond what its init says of them
    (``below``), is not known before there are some."""
    *rows, k = pool.shape
    return min(pool.nbytes, Ordered.most(math.prod(rows), k, getattr(pool.init, "below", 1 << 31)))


def unpack(
    where: str, plan: Plan, key: str, names: Sequence[str], stored: Tensor, codec: Codec, common: bool
) -> Tensor:
    """The inverse of `pack`, up to what the codec rounds."""
    pool = plan.pools[names[0]]
    shape = pool.shape if len(names) == 1 else (len(names), *pool.shape)
    if stored.dtype == getattr(torch, pool.dtype):
        return stored  # its shape is looked at like that of any pool
    try:
        return codec.decode(stored, shape, _first(plan, names, codec, common, shape))
    except CommonweightError as e:
        raise CommonweightError(f"{where}: pool {key}, coded by {name(codec)}, {e}; save the tenant again") from e


def _first(plan: Plan, names: Sequence[str], codec: Codec, common: bool, shape: tuple[int, ...]) -> Tensor | None:
    """The values before training, where every reader can make them anew: of trained pools, from the tenant's seed."""
    pool = plan.pools[names[0]]
    if not codec.uses_first or not pool.train or (common and pool.scope == "shared"):
        return None
    base: Any = _NoBase()
    try:
        each = [plan.pools[n].init(pool.shape, Rng(plan.seed, n), base).float() for n in names]
    except LookupError:
        return None
    return torch.stack(each).reshape(shape)


def _float(plan: Plan, names: Sequence[str]) -> bool:
    return plan.pools[names[0]].dtype == "float32"


def _dtype(codec: Codec) -> str:
    return getattr(codec, "dtype", "float32")


def _kind(codec: Codec | None) -> str:
    return "" if codec is None else f"{_dtype(codec)} "


def _suits(plan: Plan, names: Sequence[str], codec: Codec | None) -> bool:
    """Whether the pools are of the codec's dtype; any may stay as they are."""
    return codec is None or plan.pools[names[0]].dtype == _dtype(codec)


def _usual(plan: Plan, names: Sequence[str]) -> bool:
    """Whether a codec that is named alone is for them: what was trained, and whole numbers."""
    return plan.pools[names[0]].train or not _float(plan, names)


def _fits(name: str, pattern: str) -> bool:
    return any(fits(name, p.strip()) for p in pattern.split("|"))


def of_its_own(plan: Plan, layout: Layout, choice: Choice, said: str | Mapping[str, str] | None = None) -> Choice:
    """`choice` for the pools that are a tenant's own; those of a common as a header's ``codec`` said of them.

    A late tenant is written so: the pools that it found keep their bytes, whatever its own are stored by.
    """
    kept = read("the common", plan, layout, said)
    out: dict[str, str | Codec | None] = {}
    for key, names in layout.items():
        if plan.pools[names[0]].scope == "shared":
            out |= {escape(n): kept.get(key) for n in names}
    rest = choice if isinstance(choice, Mapping) else {"*": choice}
    return {**out, **rest} if out else choice
