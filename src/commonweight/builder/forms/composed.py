"""Linear layers whose weight is a product of factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import nn


class Factored:
    """y = B M diag(d) diag(g) A x + b: A (r, in), B (out, k); M (k, r), d (r,) and g (r,) where they are there."""

    A: nn.Parameter
    B: nn.Parameter
    composed = True  # the layer computes with more than a `weight` that it holds

    def forward(self: Any, x: Tensor) -> Tensor:
        h = F.linear(x, self.A)
        for name in "dg":
            if (one := self._parameters.get(name)) is not None:
                h = h * one
        if (core := self._parameters.get("M")) is not None:
            h = F.linear(h, core)
        return F.linear(h, self.B, self.bias)

    @property
    def weight(self: Any) -> Tensor:
        a = self.A
        for name in "dg":
            if (one := self._parameters.get(name)) is not None:
                a = a * one[:, None]
        core = self._parameters.get("M")
        w = self.B @ (a if core is None else core @ a)
        return w.T if hasattr(self, "nf") else w  # Conv1D holds (in, out)

    def composed_weight(self) -> Tensor:
        return self.weight


class Guided(Factored):
    """c W x + (1 - c) B A x + b: in training c falls from 1 to 0 over the first half of it; else it is 0."""

    W: nn.Parameter
    guide = 0.0

    def forward(self: Any, x: Tensor) -> Tensor:
        y = Factored.forward(self, x)
        if not self.guide:
            return y
        bias = 0 if self.bias is None else self.bias
        dense = x @ self.W if hasattr(self, "nf") else F.linear(x, self.W)
        return y + self.guide * (dense + bias - y)

    def pace(self, done: float) -> None:
        """done: the share of the steps that lie behind."""
        self.guide = float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, 2 * done)))))

    def settled(self) -> tuple[str, tuple[str, ...]]:
        """After training: (the form that remains, the parameters that go)."""
        return "Factored", ("W",)
