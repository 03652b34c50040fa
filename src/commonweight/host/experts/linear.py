"""One projection of a mixture under a route: each routed row by its expert's weight, changed as its tenant has it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...bind import LowRank
from ..change import changed
from ..stacks import Room, stack
from ..tenant import Entry, takes_input
from .fused import Low
from .packed import of_packed
from .products import by_size, product
from .readers import Uses
from .stacked import Expert, Stacked


class Rows(NamedTuple):
    """Routed rows in the order of their expert, and within it of their reader.

    expert: (S,), of each row. ends: (E,) int32, where each expert's rows end. each: (E readers,) the same for each
    (expert, reader). pieces: (expert * readers + reader, first row, row after the last) of those that have rows.
    """

    expert: Tensor
    ends: Tensor
    each: Tensor
    pieces: list[tuple[int, int, int]]


def project(part: Stacked, uses: Uses, rows: Rows, x: Tensor, room: Room) -> Tensor:
    """What the projection makes of x (S, inp) -> (S, out), bias included.

    Cost: that of the base; for changes with factors two grouped products of their rank; of others one call of their
    own form for every piece.
    """
    groups: dict[int, list[tuple[int, int, int, Entry]]] = {}  # alike in bind and shapes, with factors
    alone, known = [], {}
    for v, a, b in rows.pieces:
        entries = uses.at(v)
        if not entries:
            continue
        if len(entries) == 1 and (s := entries[0].signature) not in known:
            known[s] = factored(entries[0], part)
        if len(entries) == 1 and known[entries[0].signature]:
            groups.setdefault(entries[0].signature, []).append((v, a, b, entries[0]))
        else:
            alone.append((Expert(part, v // uses.readers), a, b, entries))
    given = x
    if any(takes_input(es) for _, _, _, es in alone):
        x = _pieces(x, [(a, b, _inward(at, es, x[a:b])) for at, a, b, es in alone if takes_input(es)])
    y = _base(part, rows, x)
    if alone:
        y = _pieces(y, [(a, b, _outward(at, es, given[a:b], x[a:b], y[a:b])) for at, a, b, es in alone])
    for members in groups.values():
        y = _low_rank(part, members, x, y, room)
    return y


def factored(entry: Entry, part: Stacked) -> bool:
    """Whether a use is y + B A x and nothing else, now."""
    bind = entry.bind
    if getattr(bind, "factors", None) is None or entry.inputs is not None:
        return False
    return not (part.training and getattr(bind, "draws", False))


def _base(part: Stacked, rows: Rows, x: Tensor) -> Tensor:
    y, b = product(x, part.each, rows.ends) if part.pack is None else of_packed(part.pack, x, rows.ends), part.bias
    return y if b is None else y + b.view(part.count, part.out)[rows.expert]


def _pieces(whole: Tensor, new: list[tuple[int, int, Tensor]]) -> Tensor:
    """`whole` with these rows in place of its own."""
    parts, at = [], 0
    for a, b, piece in new:
        if a > at:
            parts.append(whole[at:a])
        parts.append(piece.to(whole.dtype))
        at = b
    if at < len(whole):
        parts.append(whole[at:])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _inward(at: Expert, entries: list[Entry], x: Tensor) -> Tensor:
    return entries[0].inputs(x, at, **entries[0].slots(x.dtype))  # type: ignore[misc]


def _outward(at: Expert, entries: list[Entry], given: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """All uses of one tenant at one expert. given: x as it came, for the weight form of several."""
    if len(entries) == 1:
        e = entries[0]
        if e.output is not None:
            return e.output(x, y, at, **e.slots(x.dtype))
        if e.inputs is not None:
            return y
    elif all(e.output is not None and e.inputs is None for e in entries):
        for e in entries:
            y = e.output(x, y, at, **e.slots(x.dtype))  # type: ignore[misc]
        return y
    w, b = changed(at, entries)
    return F.linear(given, w.to(given), None if b is None else b.to(given))


def _low_rank(part: Stacked, members: list[tuple[int, int, int, Entry]], x: Tensor, y: Tensor, room: Room) -> Tensor:
    """y + B A x of every piece, as two grouped products. Only factors of pieces that have rows are read."""
    plain = not torch.is_grad_enabled()
    if plain:
        members = sorted(members, key=lambda m: m[2] - m[1])  # those of few rows are one batched product a size
    entries = [e for _, _, _, e in members]
    scale, low = unscaled(entries, x.dtype, room) if plain else (1.0, factors(entries, x.dtype))
    sizes = torch.tensor([b - a for _, a, b, _ in members])
    ends = sizes.cumsum(0)
    whole = not plain and int(ends[-1]) == len(x)
    some = None if whole else rows_of(torch.tensor([a for _, a, _, _ in members]), sizes, ends).to(x.device)
    mine = x if some is None else x.index_select(0, some)
    dropout = getattr(members[0][3].bind, "dropout", 0.0)
    if dropout and part.training:
        mine = F.dropout(mine, dropout)
    product_of = by_size if plain and x.device.type == "cpu" else product
    at = ends.to(x.device, torch.int32)
    middle = product_of(mine, low.A, at)
    added = product_of(middle if scale == 1.0 else middle * scale, low.B.mT, at).to(y.dtype)
    if plain and some is not None:
        return y.index_add_(0, some, added)
    return y + added if some is None else y.index_add(0, some, added)


def rows_of(starts: Tensor, sizes: Tensor, ends: Tensor) -> Tensor:
    """The rows of pieces that begin at `starts`, one piece behind the other. ends: of `sizes`, summed up."""
    return torch.arange(int(ends[-1])) + (starts - ends + sizes).repeat_interleave(sizes)


def factors(entries: list[Entry], dtype: torch.dtype) -> Low:
    """Those of uses that are alike, one behind the other."""
    A, B = entries[0].bind.factors(**stack(entries, dtype, None))
    return Low(A.to(dtype), B.mT.to(dtype).contiguous())


def unscaled(entries: list[Entry], dtype: torch.dtype, room: Room) -> tuple[float, Low]:
    """(s, factors of which the change is s times the product), in memory that the next stacks are laid into. A pass
    over the factors and new pages for them cost more than the products that they are for."""
    bind = entries[0].bind
    scale = bind.scale if type(bind) is LowRank else 1.0  # in others it need not be of the whole change
    if scale != 1.0:
        bind = replace(bind, scale=1.0)
    A, B = bind.factors(**stack(entries, dtype, None, room))
    return scale, Low(A.to(dtype), B.to(dtype).mT)


def alike(part: Stacked, uses: Uses, rows: Rows) -> tuple[bool, list[Entry]]:
    """(whether all rows are changed by uses with factors that are alike, or none is; those uses, piece by piece)."""
    found = [uses.at(v) for v, _, _ in rows.pieces]
    if not any(found):
        return True, []
    if not all(len(es) == 1 and factored(es[0], part) for es in found):
        return False, []
    dropped = getattr(found[0][0].bind, "dropout", 0.0) and part.training
    return not dropped and len({es[0].signature for es in found}) == 1, [es[0] for es in found]
