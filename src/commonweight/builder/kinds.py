"""Which form of a layer stands for a bind: one entry a form."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from ..address import Whole
from ..bind import Before, Exit, ExpertChoice, Experts, LowRank, Mapped, Replace, Step, Times, TokenChoice
from ..core import CommonweightError, Use
from . import forms


class Form(NamedTuple):
    """names: slot -> the parameters that hold its pools, values first. without: those that it has no more."""

    kind: type
    names: dict[str, tuple[str, ...]]
    whole: bool = False  # of a module or a block; else the site is a weight, and the module the one that holds it
    without: tuple[str, ...] = ()


_SLOTS = {
    (LowRank, Whole): Form(forms.Relaxed, {"A": ("A",), "B": ("B",)}),
    (Step, Whole): Form(forms.Stepped, {"g": ("g",)}, True),
    (Mapped, Whole): Form(forms.MappedBlock, {"M": ("M",)}, True),
    (Before, Whole): Form(forms.Told, {"e": ("e",)}, True),
    (Experts, Whole): Form(forms.Mixture, {"router": ("router",)}, True),
    (Times, Whole): Form(forms.Encoded, {"v": ("v",)}, True),
    (ExpertChoice, Whole): Form(forms.Selected, {"router": ("router",)}, True),
    (TokenChoice, Whole): Form(forms.Assigned, {"router": ("router",)}, True),
    (Exit, Whole): Form(forms.Leaving, {"router": ("router",), "bias": ("bias",)}, True),
}

KINDS: dict[str, type] = {f.kind.__name__: f.kind for f in _SLOTS.values()}


def options_of(use: Use) -> dict[str, Any]:
    """What else a form is told of a bind: its numbers."""
    return {f.name: getattr(use.bind, f.name) for f in fields(use.bind) if f.name not in ("scale", "dropout")}


def form_of(use: Use) -> Form | None:
    """None: the weight itself is the pool. Raises: CommonweightError for a bind that no layer can be given."""
    address = next((type(read.address) for read in use.reads.values()), Whole)  # a block may read nothing
    if isinstance(use.bind, Replace) and address is Whole:
        return None
    found = _SLOTS.get((type(use.bind), address))
    if found is None or getattr(use.bind, "scale", 1.0) != 1.0 or getattr(use.bind, "dropout", 0.0):
        raise CommonweightError(
            f"{use.site}: no layer does what {use.bind} with {address.__name__} says; see builder/kinds.py"
        )
    return found
