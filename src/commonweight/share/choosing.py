"""A model that is many in one: the code that says which of them it is, and that one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError

Codes = Sequence[float] | Mapping[str, float] | float


def codes(model: Any) -> dict[str, Tensor]:
    """The codes that the layers of a model read, each once, by the name of the first parameter that holds it."""
    return {n: p for n, p in model.named_parameters() if n.rpartition("_")[2] == "code" or n.endswith(".code")}


@torch.no_grad()
def choose(model: Any, code: Codes) -> Any:
    """Makes a model the one of its many that a code says: `model` itself, changed.

    code: the numbers of the code where all layers read one; or a number for all of them; or {part of a name: number},
    where layers have codes of their own. Nothing is trained or lost: the code is a tensor that is saved with the model.
    Raises: CommonweightError where the model reads no code, and for one of another length.
    """
    found = codes(model)
    if not found:
        raise CommonweightError(
            f"{type(model).__name__} reads no code; methods such as mip, supernet and qfa make such"
        )
    if isinstance(code, Mapping):
        for part, value in code.items():
            mine = [p for n, p in found.items() if part in n]
            if not mine:
                raise CommonweightError(f"no code's name has {part!r} in it; they are e.g. {next(iter(found))!r}")
            for p in mine:
                p.fill_(value)
        return model
    values = list(code) if isinstance(code, Sequence) else None
    for name, p in found.items():
        if values is not None and len(values) != p.numel():
            raise CommonweightError(f"{name} has {p.numel()} numbers; {len(values)} were given")
        p.copy_(torch.tensor(values).to(p)) if values is not None else p.fill_(float(code))  # type: ignore[arg-type]
    return model


@torch.no_grad()
def restore(model: Any, was: Mapping[str, Tensor]) -> None:
    """Codes by name, as `codes` has them."""
    for name, p in codes(model).items():
        p.copy_(was[name])


@torch.no_grad()
def settle(model: Any) -> Any:
    """The one that is chosen, alone: what layers read is put into plain weights, and the rest is left out.

    A stock model of transformers. Raises: CommonweightError where layers do what no stock layer does.
    """
    from .folders.unrolled import plain

    if not codes(model):
        raise CommonweightError(f"{type(model).__name__} reads nothing by a code; there is nothing to settle")
    return plain(model)
