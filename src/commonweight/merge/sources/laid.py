"""Sites whose weights a checkpoint keeps in other tensors than the model does: experts in one, or in one each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, Site
from ...host.disk import Lying, Weights
from ...host.places import numbers
from ...host.sites import Physical
from ..architecture.blank import NoModel, blank
from .names import lacking
from .source import Source, config_of

_BITS = 44  # of a place in a tensor; above them stands which tensor it is


class Piece(NamedTuple):
    """Rows of a site that lie in one tensor, side by side. first, rows: of the site's (out, inp). start: of its numbers
    in the tensor; steps: from row to row and from column to column."""

    tensor: str
    first: int
    rows: int
    inp: int
    start: int
    steps: tuple[int, int]

    @property
    def count(self) -> int:  # type: ignore[override]
        return self.rows * self.inp

    def lay(self, flat: Tensor) -> Tensor:
        """The piece's numbers as they lie (count,) -> a view of them (rows, inp)."""
        return flat.as_strided((self.rows, self.inp), self.steps)

    def at(self, row: int, column: int) -> int:
        """Where a number of the site lies in the tensor."""
        return self.start + (row - self.first) * self.steps[0] + column * self.steps[1]


class Laid(NamedTuple):
    """Of one site: its weight (out, inp), and its bias (out, 1), () where it has none of its own."""

    weight: tuple[Piece, ...]
    bias: tuple[Piece, ...]


class _Places(Weights):
    """Says, in place of numbers, where they lie."""

    def __init__(self, model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__(model)
        self.order = [*shapes]
        self._shapes, self._number = shapes, {n: i for i, n in enumerate(shapes)}

    @property
    def names(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def plain(self, key: str) -> Lying:
        shape, before = self._shapes[key], self._number[key] << _BITS
        steps = torch.empty(shape, device="meta").stride()

        def at(places: Tensor) -> Tensor:
            return before + (places * torch.tensor(steps, dtype=torch.int64)).sum(1)

        return Lying(tuple(shape), at)


def laid(label: str, base: Source, sites: Sequence[Site]) -> dict[str, Laid]:
    """Site -> where it lies, as transformers' own conversion of the checkpoint says.

    Cost: a model without numbers by its config.json, and of each site three numbers a row.
    Raises: CommonweightError where the checkpoint has no such weight, or keeps it in a way that is not read.
    """
    from ...host import experts  # with all that runs a model, which other merges have no use of

    try:
        model = blank(config_of(base.files[0])) if base.files else None
    except NoModel:
        model = None
    if model is None:
        raise lacking(_weight(sites[0]), label, base)
    modules, there, _ = experts.discover(model)
    known = {s.name: s for s in there}
    weights, out = _Places(model, base.shapes), {}
    for site in sites:
        name = _same(site.name, known)
        if name is None:
            raise lacking(_weight(site), label, base)
        mine, at = known[name], modules[name.split("[")[0]]
        if (mine.out, mine.inp) != (site.out, site.inp):
            raise CommonweightError(
                f"{site.name}: the tenant of {label} reads a weight of {site.out} by {site.inp} numbers there, and "
                f"{base.label} has one of {mine.out} by {mine.inp}; give the base on which it was trained"
            )
        try:
            out[site.name] = Laid(
                _pieces(weights, at, mine), _biases(weights, at, mine, isinstance(at, experts.Stacked))
            )
        except LookupError as e:
            raise lacking(_weight(site), label, base) from e
    return out


def _weight(site: Site) -> str:
    return site.name if site.kind == "expert" else f"{site.name}.weight"


def _same(name: str, known: Mapping[str, Site]) -> str | None:
    """The model's own name of a site, whatever stands before one of the two."""
    if name in known:
        return name
    found = [k for k in known if k.endswith(f".{name}") or name.endswith(f".{k}")]
    return found[0] if len(found) == 1 else None


def _pieces(weights: _Places, at: Physical, site: Site) -> tuple[Piece, ...]:
    rows = torch.arange(site.out) * site.inp
    first, last = (numbers(weights, at, site, rows + c) for c in (0, site.inp - 1))
    second = numbers(weights, at, site, rows + 1) if site.inp > 1 else first + 1
    return _cut(weights, first, second - first, last, site.inp)


def _biases(weights: _Places, at: Physical, site: Site, stacked: bool) -> tuple[Piece, ...]:
    if not site.bias or at.bias_slot is None:
        return ()
    begin = site.rows[0] if site.rows else 0
    shape = (at.count, at.out) if stacked and site.kind == "expert" else (site.out,)  # type: ignore[attr-defined]
    found = weights.find(f"{at.home}{at.bias_slot}", shape).flat(torch.arange(begin, begin + site.out))
    return _cut(weights, found, torch.ones_like(found), found, 1)


def _cut(weights: _Places, first: Tensor, step: Tensor, last: Tensor, inp: int) -> tuple[Piece, ...]:
    """first, last (out,): where each row's first and last numbers lie; step (out,): from the first to the second.

    Raises: LookupError for what does not lie in one stretch of each tensor."""
    tensor, out = first >> _BITS, []
    ends = [0, *((tensor[1:] != tensor[:-1]).nonzero()[:, 0] + 1).tolist(), len(first)]
    for a, b in pairwise(ends):
        name, rows, columns = weights.order[int(tensor[a])], b - a, int(step[a])
        down = int(first[a + 1] - first[a]) if rows > 1 else inp
        straight = (down, columns) == (inp, 1) or (down, columns) == (1, rows)
        even = bool((first[a:b].diff() == down).all()) and bool((last[a:b] - first[a:b] == columns * (inp - 1)).all())
        if not straight or not even or not bool((step[a:b] == columns).all()):
            raise LookupError(name)
        out.append(Piece(name, a, rows, inp, int(first[a]) & ((1 << _BITS) - 1), (down, columns)))
    return tuple(out)
