"""Which form of a layer stands for a bind: one entry a form."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from ..address import Hashed, Whole
from ..bind import (
    Before,
    Bottleneck,
    Contrast,
    Doubled,
    Elastic,
    Exit,
    Expected,
    Expecting,
    ExpertChoice,
    Experts,
    Gathered,
    Guided,
    Halt,
    LowRank,
    Mapped,
    Parallel,
    Prefixes,
    Product,
    ProductKeys,
    Projected,
    Replace,
    Requantised,
    Step,
    Streams,
    ThinHead,
    ThinTable,
    Times,
    TokenChoice,
    Twice,
)
from ..core import CommonweightError, Read, Use, dump
from ..core.serial import registered
from . import forms


class Form(NamedTuple):
    """names: slot -> the parameters that hold its pools, values first. without: those that it has no more."""

    kind: type
    names: dict[str, tuple[str, ...]]
    whole: bool = False  # of a module or a block; else the site is a weight, and the module the one that holds it
    without: tuple[str, ...] = ()


_GRID = ("grid", "scale", "zero", "A", "B")
_ELASTIC: dict[str, tuple[str, ...]] = {n: (n,) for n in ("code", *(f"{k}{b}" for k in _GRID for b in range(1, 9)))}
_ADAPTER = ("down", "down_bias", "up", "up_bias")
_SLOTS: dict[tuple[type, type], Form] = {
    (Requantised, Whole): Form(
        forms.Requantised, {n: (n,) for n in (*_GRID, "low", "size", "code")}, without=("weight",)
    ),
    (Bottleneck, Whole): Form(forms.Serial, {n: (n,) for n in _ADAPTER}, True),
    (Parallel, Whole): Form(forms.Parallel, {n: (f"side_{n}",) for n in _ADAPTER}, True),
    (Elastic, Whole): Form(forms.Elastic, _ELASTIC, without=("weight",)),
    (LowRank, Whole): Form(forms.Relaxed, {"A": ("A",), "B": ("B",)}),
    (Product, Whole): Form(forms.Factored, {n: (n,) for n in "ABMdg"}, without=("weight",)),
    (Guided, Whole): Form(forms.Guided, {n: (n,) for n in "ABW"}, without=("weight",)),
    (ProductKeys, Whole): Form(forms.Keyed, {n: (n,) for n in ("query", "query_bias", "keys", "values")}, True),
    (Doubled, Whole): Form(forms.Doubled, {n: (n,) for n in ("A1", "B1", "A2", "B2")}, True),
    (Twice, Whole): Form(forms.Twice, {}, True),
    (Contrast, Whole): Form(forms.Contrast, {"lam": ("lam",)}, True),
    (Step, Whole): Form(forms.Stepped, {"g": ("g",)}, True),
    (Mapped, Whole): Form(forms.MappedBlock, {"M": ("M",)}, True),
    (Before, Whole): Form(forms.Told, {"e": ("e",)}, True),
    (Experts, Whole): Form(forms.Mixture, {"router": ("router",)}, True),
    (Projected, Whole): Form(
        forms.Projection, {"b": ("mix",), "norm": ("mix_norm",), "W1": ("mix_in",), "W2": ("mix_out",)}, True
    ),
    (Times, Whole): Form(forms.Encoded, {"v": ("v",)}, True),
    (ExpertChoice, Whole): Form(forms.Selected, {"router": ("router",)}, True),
    (TokenChoice, Whole): Form(forms.Assigned, {"router": ("router",)}, True),
    (Halt, Whole): Form(forms.Halted, {n: (n,) for n in ("halt_in", "halt_out", "halt_bias")}, True),
    (Expecting, Whole): Form(forms.Heard, {}, True),
    (Expected, Whole): Form(forms.Spoken, {}, True),
    (ThinTable, Whole): Form(forms.Thin, {"table": ("table",), "map": ("map",)}, True, ("weight",)),
    (ThinHead, Whole): Form(forms.ThinHead, {"table": ("table",), "down": ("down",)}, True, ("weight",)),
    (Streams, Whole): Form(forms.Streamed, {}, True),
    (Prefixes, Whole): Form(forms.Prefixed, {"keys": ("prefix_keys",), "values": ("prefix_values",)}, True),
    (Gathered, Whole): Form(
        forms.Gathered,
        {"W1": ("mix_in",), "b1": ("mix_in_bias",), "W2": ("mix_out",), "b2": ("mix_out_bias",)},
        True,
    ),
    (Exit, Whole): Form(forms.Leaving, {"router": ("router",), "bias": ("bias",)}, True),
}

KINDS: dict[str, type] = {
    f.kind.__name__: f.kind for f in (*_SLOTS.values(), Form(forms.Addressed, {}), Form(forms.Recalled, {}))
}
forms.Addressed.addresses = registered()


def options_of(use: Use) -> dict[str, Any]:
    """What else a form is told of a bind: its numbers; of a weight that is read by an address, the address."""
    found = form_of(use)
    if found is not None and issubclass(found.kind, forms.Addressed):
        of = _of(use)
        return {"of": of, "address": dump(use.reads["weight"].address), "names": list(found.names["weight"])}
    told = {f.name: getattr(use.bind, f.name) for f in fields(use.bind) if f.name not in ("scale", "dropout")}
    place = told.pop("where", None)
    return told if place is None else {**asdict(place), **told}


def form_of(use: Use) -> Form | None:
    """None: the weight itself is the pool. Raises: CommonweightError for a bind that no layer can be given."""
    address = next((type(read.address) for read in use.reads.values()), Whole)  # a block may read nothing
    if isinstance(use.bind, Replace) and address is Whole:
        return None
    found = _SLOTS.get((type(use.bind), address))
    if found is None and isinstance(use.bind, Replace):
        kind = forms.Recalled if address is Hashed else forms.Addressed
        return Form(kind, {"weight": named(_of(use), use.reads["weight"])}, without=(_of(use),))
    if found is None or getattr(use.bind, "scale", 1.0) != 1.0 or getattr(use.bind, "dropout", 0.0):
        raise CommonweightError(
            f"{use.site}: no layer does what {use.bind} with {address.__name__} says; see builder/kinds.py"
        )
    return found


def named(of: str, read: Read) -> tuple[str, ...]:
    """The parameters that hold what an address reads, called as its arguments are: ``weight_bank``, ``weight_code``."""
    arguments = list(inspect.signature(read.address.__call__).parameters.values())
    plain = [a.name for a in arguments if a.kind is not a.VAR_POSITIONAL][: len(read.pools)]
    rest = next((a.name for a in arguments if a.kind is a.VAR_POSITIONAL), "")
    return tuple(f"{of}_{n}" for n in (*plain, *(f"{rest}{i}" for i in range(len(read.pools) - len(plain)))))


def _of(use: Use) -> str:
    return use.site.rpartition(".")[2]
