"""A second distribution over the vocabulary from a map of the last state, mixed with the base's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import serial
from .low_rank import each


@serial
@dataclass(frozen=True)
class Lends:
    """y as it is. What the site is given can be read by a bind whose `source` it is, later in the same pass."""

    anywhere: ClassVar[str] = "output"
    lends: ClassVar[bool] = True

    def output(self, x: Tensor, y: Tensor, base: Any) -> Tensor:
        return y


@serial
@dataclass(frozen=True)
class SecondHead:
    """At the head, with f what `source`, the last norm, was given: z = W norm(s B A f), and of the base's scores y
    log((1 - l) softmax(y) + l softmax(z)). In training mode z alone.

    Shapes: A (r, d), B and R (d, r), kappa (1,). l is `share`; with a `length` it falls evenly to zero within so many
    tokens of the answer, which begins behind the last occurrence of `invocation`; before that, and where l is zero, y
    is as it is. R: in training, |R s A f - f|^2 (the mean over d) times kappa is told as a loss of each token, and the
    gradient of z is multiplied by 1 - kappa. Linear in: nothing. Cost: T (2 r d + d V) products.
    Raises: CommonweightError where the norm did not run before the head in the same pass.
    """

    scale: float
    share: float
    source: str
    length: int = 0
    invocation: tuple[int, ...] = ()
    dropout: float = 0.0

    @property
    def tokenwise(self) -> bool:
        return not self.invocation

    def output(self, x: Tensor, y: Tensor, base: Any, **slots: Tensor) -> Tensor:
        return self._scores(F.linear, y, base, **slots)

    def grouped(self, x: Tensor, y: Tensor, base: Any, **slots: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, d), A (n, r, d), ..."""
        return self._scores(each, y, base, **slots)

    def _scores(
        self,
        product: Callable[[Tensor, Tensor], Tensor],
        y: Tensor,
        base: Any,
        A: Tensor,
        B: Tensor,
        R: Tensor | None = None,
        kappa: Tensor | None = None,
    ) -> Tensor:
        f, norm = base.lent(self.source), base.lender(self.source)
        low = self.scale * product(F.dropout(f, self.dropout, base.training), A)
        z = base.call(norm.call(product(low, B), norm.weight, norm.bias), base.weight.to(low.dtype), base.bias)
        if R is not None and kappa is not None:
            kappa = kappa if kappa.dim() == 1 else kappa[:, None]
            base.tell(kappa * (product(low, R) - f).square().mean(-1, keepdim=True))
            if base.training:
                return (z - z.detach()) * (1 - kappa) + z.detach()
        return z if base.training else mixed(y, z, self.shares(base.since))

    def shares(self, since: Tensor | None) -> Tensor | float:
        """l of each token, by how far behind the beginning of the invocation it stands: its last token says the first
        one of the answer."""
        if since is None:
            return self.share
        t = since - (len(self.invocation) - 1)
        return torch.where(t.lt(0), 0.0, (self.share * (1 - t / self.length)).clamp(min=0))


def mixed(y: Tensor, z: Tensor, share: Tensor | float) -> Tensor:
    """log((1 - l) softmax(y) + l softmax(z)) in float32, y where l is 0. Shapes: y, z (..., V), l (..., 1)."""
    ours, theirs = z.float().log_softmax(-1), y.float().log_softmax(-1)
    if not isinstance(share, Tensor):
        return torch.logaddexp(theirs + _log(1 - share), ours + _log(share)).to(y.dtype) if share else y
    both = torch.logaddexp(theirs + torch.log1p(-share), ours + torch.log(share)).to(y.dtype)
    return torch.where(share.gt(0), both, y)


def _log(p: float) -> float:
    return math.log(p) if p else -math.inf
