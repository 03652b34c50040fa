"""Convolutions of one to three dimensions: linear in their patches, with a weight (out, inp / groups * kernel)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from ...core import Site
from .found import Found, Whole
from .physical import Physical, numbers, plain_class
from .roles import role

_PLAIN = {nn.Conv1d.forward: F.conv1d, nn.Conv2d.forward: F.conv2d, nn.Conv3d.forward: F.conv3d}


class Conv(Physical):
    """x and y have their channels last, (B, *places, channels); rows of a weight are filters, its columns a patch."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__(name, module, "conv", False)
        self.run = _PLAIN[type(module).forward]
        self.places = len(module.kernel_size)  # type: ignore[arg-type]
        self.forms = "through" if module.groups == 1 else "output"

    @property
    def weight(self) -> Tensor:
        return super().weight.flatten(1)

    def steady(self, places: Tensor) -> Tensor:
        return numbers(self.weight, places)

    def native(self, weight: Tensor) -> Tensor:
        m = self.module
        return weight.reshape(len(weight), m.in_channels // m.groups, *m.kernel_size)  # type: ignore[operator,misc]

    def laid(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def seen(self, t: Tensor) -> Tensor:
        return t.movedim(-1 - self.places, -1)

    def given(self, t: Tensor) -> Tensor:
        return t.movedim(-1, -1 - self.places)

    def rows_of(self, x: Tensor) -> bool:
        return x.dim() == self.places + 2

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.seen(self._conv(self.given(x), self.native(weight), bias, self.module.groups))  # type: ignore

    def many(self, x: Tensor, weight: Tensor) -> Tensor:
        """One convolution with a group for each reader."""
        n, r = weight.shape[:2]
        as_one = self.given(x).reshape(1, -1, *x.shape[1:-1])
        y = self._conv(as_one, self.native(weight.flatten(0, 1)), None, n)
        return y.view(n, r, -1).mT

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        m, padding = self.module, self.module.padding
        if m.padding_mode != "zeros":
            x = F.pad(x, m._reversed_padding_repeated_twice, mode=m.padding_mode)  # type: ignore[arg-type]
            padding = 0
        return self.run(x, weight, bias, m.stride, padding, m.dilation, groups)  # type: ignore[arg-type]


def shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, inp) of a convolution whose forward is torch's own; one that makes its weight anew in each call is none."""
    w = module._parameters.get("weight")
    if plain_class(module).forward not in _PLAIN or w is None or not w.is_floating_point():
        return None
    return w.shape[0], math.prod(w.shape[1:])


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if (found := shape(module)) is None:
        return []
    site = Site(name, *found, "conv", role(name), module._parameters.get("bias") is not None)
    return [Found(Conv(name, module), site, whole.inside(name) or not whole.blocks)]
