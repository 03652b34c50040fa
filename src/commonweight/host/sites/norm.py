"""Norms: a weight (width,) that factors and shifts read."""

from __future__ import annotations

from torch import Tensor, nn

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
    w = getattr(module, "weight", None)
    return isinstance(w, Tensor) and w.dim() == 1 and type(module).__name__.endswith("Norm")
