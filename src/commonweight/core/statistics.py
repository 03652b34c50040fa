"""Sums over rows and tokens, for whatever has them: a model's parameters, a tenant's pools, the sites of a host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def rows_of(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each row of a batch, as a batch of one."""
    for i in range(len(next(iter(batch.values())))):
        yield {k: v[i : i + 1] for k, v in batch.items()}


def add_squared(
    sums: Mapping[str, Tensor], value: Tensor, of: Mapping[str, Tensor], weight: float = 1.0, again: bool = False
) -> None:
    """Adds weight * (d value / d of)^2 to the sums, where they lie; value: a number with a graph. again: of the same
    graph there is more to come. Cost: a backward pass, and one copy of the gradients."""
    grads = torch.autograd.grad(value, list(of.values()), retain_graph=again, allow_unused=True)
    for name, g in zip(of, grads):
        if g is not None:
            total = sums[name]
            total.add_(g.detach().to(total.dtype).square().to(total.device), alpha=weight)


def tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows of x that count. Shapes: x (..., d), mask as the first dimensions of x, or of another input: (n, d)."""
    x = x.detach()
    if mask is not None and x.shape[: mask.dim()] == mask.shape:
        x = x[mask]
    return x.reshape(-1, x.shape[-1])


class Grams:
    """X^T X of the tokens that came to each name, in float64, and their number. Cost: n d^2 a name, d^2 numbers."""

    def __init__(self, device: torch.device | str | None = None):
        """device: where the sums are kept; None: where the tokens are."""
        self.device, self.sums, self.counts = device, dict[str, Tensor](), dict[str, int]()

    def add(self, name: str, x: Tensor) -> None:
        """x (n, d)."""
        x = x.double()
        part = (x.T @ x).to(self.device or x.device)
        self.sums[name] = self.sums[name] + part if name in self.sums else part
        self.counts[name] = self.counts.get(name, 0) + len(x)

    def mean(self, name: str) -> Tensor:
        """(d, d), float32."""
        return (self.sums[name] / self.counts[name]).float()
