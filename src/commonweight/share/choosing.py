"""A model that is many in one: the code that says which of them it is, and that one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..builder.forms import Elastic, Requantised
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
    Raises: CommonweightError where the model reads no code, and for one of another length, or with numbers that its
    layers do not tell apart: bits that they have no grid of, steps that they have no range of, shares beyond 0 to 1.
    Then nothing is changed.
    """
    found = codes(model)
    if not found:
        raise CommonweightError(
            f"{type(model).__name__} reads no code; methods such as mip, supernet and qfa make such"
        )
    new: dict[str, list[float]] = {}
    if isinstance(code, Mapping):
        for part, value in code.items():
            mine = [n for n in found if part in n]
            if not mine:
                raise CommonweightError(f"no code's name has {part!r} in it; they are e.g. {next(iter(found))!r}")
            new |= {n: _numbers(n, [value], found[n]) for n in mine}
    else:
        several = isinstance(code, Sequence) and not isinstance(code, str)
        new = {n: _numbers(n, list(code) if several else [code], p, several) for n, p in found.items()}
    for name, values in new.items():
        _fits(name, values, model.get_submodule(name.rpartition(".")[0]))
    for name, values in new.items():
        found[name].copy_(torch.tensor(values).to(found[name]))
    return model


def _numbers(name: str, values: list[Any], code: Tensor, several: bool = False) -> list[float]:
    if wrong := [v for v in values if not isinstance(v, int | float)]:
        raise CommonweightError(f"{name}: {wrong[0]!r} is no number")
    if several and len(values) != code.numel():
        raise CommonweightError(f"{name} has {code.numel()} numbers; {len(values)} were given")
    return [float(v) for v in (values if several else values * code.numel())]


def _fits(name: str, values: list[float], layer: Any) -> None:
    """Raises: CommonweightError for what the layer cannot be."""
    if isinstance(layer, Elastic):
        known, told = set(map(float, layer.bits)), f"one of {sorted(layer.bits)} bits"
    elif isinstance(layer, Requantised):
        known, told = set(map(float, range(len(layer.low)))), f"a step from 0 to {len(layer.low) - 1}"  # type: ignore[arg-type]
    else:
        known, told = None, "a number from 0 to 1"
    for v in values:
        if v not in known if known is not None else not 0 <= v <= 1:
            raise CommonweightError(f"{name} is asked to be {v:g}; wanted {told}")


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
