"""Norms: a weight (width,) that factors and shifts read."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import Site
from .found import Found, Whole
from .physical import Physical, plain_class

_BATCH = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d


class Channels(Physical):
    """A norm of channels, (B, channels, *places): of a list of tokens it would take the tokens for channels."""

    tokens = False

    def rows_of(self, x: Tensor) -> bool:
        return x.dim() > 2


class Batch(Channels):
    """One by the numbers of a batch or of an image, which in training mode keeps a running mean of them."""

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Leaves that mean as it is: the module has moved it by this very input."""
        m: Any = self.module
        if isinstance(m, _BATCH[3:]):
            own = m.training or not m.track_running_stats
            mean, var = (None, None) if own else (m.running_mean, m.running_var)
            return F.instance_norm(x, mean, var, weight, bias, own, 0.0, m.eps)
        own = m.training or m.running_mean is None
        mean, var = (None, None) if own else (m.running_mean, m.running_var)
        if mean is not None and var is not None and torch.is_grad_enabled() and not weight.requires_grad:
            scale = weight * torch.rsqrt(var + m.eps)  # a product with it keeps nothing of x for gradients
            shift = -mean * scale if bias is None else bias - mean * scale
            wide = (-1, *[1] * (x.dim() - 2))
            return torch.addcmul(shift.to(x).view(wide), x, scale.to(x).view(wide))
        return F.batch_norm(x, mean, var, weight, bias, own, 0.0, m.eps)


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    batch = plain_class(module).forward in [k.forward for k in _BATCH] and module._parameters.get("weight") is not None
    if not (batch or is_norm(module)):
        return []
    width: int = module.weight.shape[0]  # type: ignore[union-attr,index,assignment]
    site = Site(name, width, 1, "norm", "", getattr(module, "bias", None) is not None)
    kind = Batch if batch else Channels if isinstance(module, nn.GroupNorm) else Physical
    at = kind(name, module, "norm", False)
    return [Found(at, site, whole.inside(name))]


def is_norm(module: nn.Module) -> bool:
    """One that reads its input alone: those with a gate, a condition or a scale beside it are sites of parameters."""
    w = module._parameters.get("weight")
    if w is None or w.dim() != 1 or not type(module).__name__.endswith("Norm"):
        return False
    given = [p for p in inspect.signature(type(module).forward).parameters.values()][1:]
    return len(given) == 1
