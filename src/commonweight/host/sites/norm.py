"""Norms: a weight (width,) that factors and shifts read."""

from __future__ import annotations

import inspect

from torch import nn

from ...core import Site
from .found import Found, Whole
from .physical import Physical


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if not is_norm(module):
        return []
    width: int = module.weight.shape[0]  # type: ignore[union-attr,index,assignment]
    site = Site(name, width, 1, "norm", "", getattr(module, "bias", None) is not None)
    return [Found(Physical(name, module, "norm", False), site, whole.inside(name))]


def is_norm(module: nn.Module) -> bool:
    """One that reads its input alone: those with a gate, a condition or a scale beside it are sites of parameters."""
    w = module._parameters.get("weight")
    if w is None or w.dim() != 1 or not type(module).__name__.endswith("Norm"):
        return False
    given = [p for p in inspect.signature(type(module).forward).parameters.values()][1:]
    return len(given) == 1
