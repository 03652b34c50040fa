"""Which form of a layer stands for a bind: one entry a form."""

from __future__ import annotations

from typing import NamedTuple

from ..address import Whole
from ..bind import Before, LowRank, Mapped, Replace, Step, Times
from ..core import CommonweightError, Use
from . import forms


class Form(NamedTuple):
    """names: slot -> the parameters that hold its pools, values first. without: those that it has no more."""

    kind: type
    names: dict[str, tuple[str, ...]]
    without: tuple[str, ...] = ()


_SLOTS = {
    (LowRank, Whole): Form(forms.Relaxed, {"A": ("A",), "B": ("B",)}),
    (Step, Whole): Form(forms.Stepped, {"g": ("g",)}),
    (Mapped, Whole): Form(forms.MappedBlock, {"M": ("M",)}),
    (Before, Whole): Form(forms.Told, {"e": ("e",)}),
    (Times, Whole): Form(forms.Encoded, {"v": ("v",)}),
}

KINDS: dict[str, type] = {f.kind.__name__: f.kind for f in _SLOTS.values()}


def form_of(use: Use) -> Form | None:
    """None: the weight itself is the pool. Raises: CommonweightError for a bind that no layer can be given."""
    read = next(iter(use.reads.values()))
    if isinstance(use.bind, Replace) and isinstance(read.address, Whole):
        return None
    found = _SLOTS.get((type(use.bind), type(read.address)))
    if found is None or getattr(use.bind, "scale", 1.0) != 1.0 or getattr(use.bind, "dropout", 0.0):
        raise CommonweightError(
            f"{use.site}: no layer does what {use.bind} with {type(read.address).__name__} says; see builder/kinds.py"
        )
    return found
