"""Which tensor of a tenant's file is stored by which codec, and the one place where values pass through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError, Plan, Rng, fits
from .codecs import Codec, get, name

Layout = Mapping[str, Sequence[str]]
Choice = str | Codec | Mapping[str, str | Codec | None] | None


class _NoBase:
    """Stands where an init looks at the base: such first values are not the same on every machine."""

    def __getattr__(self, _: str) -> Any:
        raise LookupError


def choose(plan: Plan, layout: Layout, choice: Choice) -> dict[str, Codec]:
    """Tensor of the file -> its codec.

    choice: one codec, for all trainable float32 pools (`ordered`: for all int32 pools); or a mapping from patterns over
    pool names (globs joined by ``|``; the first that fits counts) to codecs, None for as it is. A codec is for pools of
    its own dtype alone.
    Raises: CommonweightError for an unknown codec, a pattern that fits no such pool or a part of a stacked tensor.
    """
    if choice is None:
        return {}
    if not isinstance(choice, Mapping):
        codec = get(choice)
        return {k: codec for k, names in layout.items() if _suits(plan, names, codec) and _usual(plan, names)}
    wanted = {pattern: None if codec is None else get(codec) for pattern, codec in choice.items()}
    for pattern, codec in wanted.items():
        able = [n for names in layout.values() if _suits(plan, names, codec) for n in names]
        if not isinstance(pattern, str) or not any(_fits(n, pattern) for n in able):
            some = f"; it has {', '.join(able[:3])}, ..." if able else ""
            raise CommonweightError(f"codec: {pattern!r} matches no saved {_dtype(codec)} pool of this tenant{some}")
    out = {}
    for key, names in layout.items():
        mine = {p: c for p, c in wanted.items() if _suits(plan, names, c)}
        found = [next((c for p, c in mine.items() if _fits(n, p)), None) for n in names]
        if found.count(found[0]) != len(found):
            other = names[next(i for i, c in enumerate(found) if c != found[0])]
            raise CommonweightError(
                f"codec: {names[0]} and {other} lie in one tensor, {key}, but have different codecs; "
                "write a pattern that fits both"
            )
        if found[0] is not None:
            out[key] = found[0]
    return out


def told(plan: Plan, layout: Layout, chosen: Mapping[str, Codec]) -> str | dict[str, str]:
    """What the header says: one name where `choose` would come to the same by it, else tensor -> name."""
    names = {k: name(c) for k, c in chosen.items()}
    for one in set(names.values()):
        if names.keys() == choose(plan, layout, one).keys() and set(names.values()) == {one}:
            return one
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
            return choose(plan, layout, said)
        found = {k: get(v) for k, v in said.items()}
        for k, codec in found.items():
            if k not in layout or not _suits(plan, layout[k], codec):
                raise CommonweightError(
                    f"its header names a codec for {k}, which is not a {_dtype(codec)} tensor of it"
                )
        return found
    except CommonweightError as e:
        raise CommonweightError(f"{where}: {e}") from e


def pack(plan: Plan, key: str, names: Sequence[str], value: Tensor, codec: Codec, common: bool) -> Tensor:
    """A tensor as the file holds it: coded, or as it is where that is no larger. value: the pools, stacked.

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
    stored = codec.encode(value, first)
    if not codec.decode(stored, tuple(value.shape), first).isfinite().all():
        largest = value.abs().max().item()
        raise CommonweightError(f"pool {names[0]}: {largest:g} is too large for the codec {name(codec)}; leave it out")
    return stored if stored.nbytes < value.nbytes else value


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


def _dtype(codec: Codec | None) -> str:
    return getattr(codec, "dtype", "float32")


def _suits(plan: Plan, names: Sequence[str], codec: Codec | None) -> bool:
    """Whether the pools are of the codec's dtype."""
    return plan.pools[names[0]].dtype == _dtype(codec)


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
        if plan.pools[names[0]].scope == "shared" and _float(plan, names):
            out |= {escape(n): kept.get(key) for n in names}
    rest = choice if isinstance(choice, Mapping) else {"*": choice}
    return {**out, **rest} if out else choice
