"""Convolutions of one to three dimensions: linear in their patches, with a weight (out, inp / groups * kernel).

Transposed ones give every place of the input a patch of the output: the same weight, turned around.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...core import Site
from .found import Found, Whole
from .physical import Physical, numbers, plain_class
from .roles import role

_PLAIN = {nn.Conv1d.forward: F.conv1d, nn.Conv2d.forward: F.conv2d, nn.Conv3d.forward: F.conv3d}
_TURNED = {
    nn.ConvTranspose1d.forward: F.conv_transpose1d, nn.ConvTranspose2d.forward: F.conv_transpose2d,
    nn.ConvTranspose3d.forward: F.conv_transpose3d,
}  # fmt: skip


def depthwise(modules: Mapping[str, Physical], site: Site) -> bool:
    """Whether it is a convolution that keeps its channels apart."""
    module: Any = modules[site.name].module if site.kind == "conv" else None
    return module is not None and module.groups == module.in_channels > 1


def before_conv(names: Mapping[str, nn.Module], modules: Mapping[str, Physical]) -> set[str]:
    """Linear layers of mixers that lay tokens over each other by a convolution (Mamba 2, Gated DeltaNet, ...). What is
    padding has zeros there as its input, and no bias makes numbers of them, or those after it would see it."""
    own = {n.rpartition(".")[0] for n, m in names.items() if isinstance(m, nn.Conv1d) and m.groups == m.in_channels > 1}
    return {n for n, at in modules.items() if at.kind == "linear" and n.rpartition(".")[0] in own}


class Conv(Physical):
    """x and y have their channels last, (B, *places, channels); rows of a weight are filters, its columns a patch."""

    tokens = False

    def __init__(self, name: str, module: nn.Module):
        super().__init__(name, module, "conv", False)
        self.run = (_PLAIN | _TURNED)[type(module).forward]
        self.places = len(module.kernel_size)  # type: ignore[arg-type]
        self.forms = "through" if module.groups == 1 else "output"

    @property
    def weight(self) -> Tensor:
        return self.laid(super().weight)

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


class Turned(Conv):
    """A transposed convolution, whose module keeps (channels, out / groups, *kernel)."""

    alone = True

    def native(self, weight: Tensor) -> Tensor:
        return self._turned(weight, self.module.groups)  # type: ignore[arg-type]

    def laid(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.module.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)  # type: ignore

    def many(self, x: Tensor, weight: Tensor) -> Tensor:
        n, r = weight.shape[:2]
        as_one = self.given(x).reshape(1, -1, *x.shape[1:-1])
        y = self._conv(as_one, self._turned(weight.flatten(0, 1), n), None, n)
        return y.view(n, r, -1).mT

    def _turned(self, weight: Tensor, groups: int) -> Tensor:
        by_group = weight.reshape(groups, len(weight) // groups, -1, *self.module.kernel_size)  # type: ignore[misc]
        return by_group.transpose(1, 2).flatten(0, 1)

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        m = self.module
        return self.run(x, weight, bias, m.stride, m.padding, m.output_padding, groups, m.dilation)  # type: ignore


def shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, inp) of a convolution whose forward is torch's own; one that makes its weight anew in each call is none."""
    w, forward = module._parameters.get("weight"), plain_class(module).forward
    if w is None or not w.is_floating_point() or w.dim() < 3:
        return None
    if forward in _TURNED:
        out: int = module.out_channels  # type: ignore[assignment]
        return out, w.numel() // out
    return (w.shape[0], math.prod(w.shape[1:])) if forward in _PLAIN else None


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if (found := shape(module)) is None:
        return []
    site = Site(name, *found, "conv", role(name), module._parameters.get("bias") is not None)
    at = (Turned if plain_class(module).forward in _TURNED else Conv)(name, module)
    return [Found(at, site, whole.inside(name) or not whole.blocks)]
