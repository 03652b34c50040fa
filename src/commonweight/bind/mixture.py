"""Low-rank experts of which every token takes what its own hidden state says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial
from . import fused
from .low_rank import each

SCORES = {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid}


GATED = (  # why a tenant cannot be merged, and what could
    "its gates go by each token, and so would the weight; with gates that no token changes there would be one: "
    "`poly`, whose are a tenant's own, or `lorahub` over finished tenants"
)


def tell(base: Base, logits: Tensor) -> None:
    """What a router says, for a loss, where somebody listens."""
    if (told := getattr(base, "tell", None)) is not None:
        told(logits)


@serial
@dataclass(frozen=True)
class Dynamic:
    """Gates of as many experts as a token is sure of. p = softmax(logits); the largest are kept while their sum is at
    most `p`, `least` of them always, all of them where the normalised Tsallis entropy of p is above `entropy`. A gate
    is p itself: what is kept is not renormalised.

    Source: DynMoLE, github.com/mikecovlee/DynMoLE @9354b27, moe_peft/adapters/dynmole/model.py. Shapes: (..., E) ->
    (..., E). The expert with which the sum crosses `p` is not kept by it.
    """

    p: float = 0.75
    least: int = 2
    entropy: float = 0.9
    q: float = 1.1

    def __call__(self, logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        order = p.argsort(-1, descending=True)
        ranked = p.gather(-1, order)
        kept = ranked.cumsum(-1) <= self.p
        kept[..., : self.least] = True
        kept = torch.zeros_like(kept).scatter(-1, order, kept)
        return p * (kept | (tsallis(p, self.q) > self.entropy)[..., None])


def tsallis(p: Tensor, q: float, eps: float = 1e-5) -> Tensor:
    """Entropy of p (..., E) of index q, over that of E equal shares: (...). q = 1 is Shannon's. 0 where E is 1."""
    n = p.shape[-1]
    if n == 1:
        return p.new_zeros(p.shape[:-1])
    p = p + eps
    if abs(q - 1) < 1e-6:
        return -(p * p.log()).sum(-1) / math.log(n)
    return (1 - (p**q).sum(-1)) / (1 - n ** (1 - q))


@serial
@dataclass(frozen=True)
class Winner:
    """The expert with the largest logit, whole: a router that the task's loss does not reach. Shapes: as `Dynamic`."""

    def __call__(self, logits: Tensor) -> Tensor:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


@serial
@dataclass(frozen=True)
class Mixture:
    """y' = y + scale sum_e g_e(x) B_e A_e x: one low rank of rank E r whose diagonal each token has to itself.

    g = score(router x + bias) + shift; k > 0: the k largest of them, over their sum, and 0 elsewhere. gate: what makes
    gates of logits in place of score, shift and k. dropped: the router too reads x after the dropout. source: the site
    whose input the router reads, where it is not its own; lends: that site's. quiet: another site says the same for the
    loss.
    Shapes: A (E r, d_in), or (r, d_in) where all experts have one A; B (d_out, E r), router (E, d_in), bias and
    shift (E,), if any. Linear in: A and B, each alone. No form of a weight: it would be another one for each token.
    Cost: T E (r (d_in + d_out) + d_in) products, whatever k is: a gate of 0 is a product with 0.
    """

    scale: float = 1.0
    score: str = "softmax"
    k: int = 0
    dropout: float = 0.0
    dropped: bool = False
    gate: Any = None
    source: str = ""
    lends: bool = False
    quiet: bool = False
    precise: ClassVar[bool] = True  # gates are worked out in float32
    unmerged: ClassVar[str] = GATED

    def gates(self, logits: Tensor, shift: Tensor | None = None) -> Tensor:
        """(..., E) of logits (..., E)."""
        if self.gate is not None:
            return self.gate(logits)
        p = SCORES[self.score](logits)
        p = p if shift is None else p + shift
        if not self.k:
            return p
        top, at = p.topk(self.k, -1)
        return torch.zeros_like(p).scatter(-1, at, top / top.sum(-1, keepdim=True))

    @staticmethod
    def rank(B: Tensor, router: Tensor) -> int:
        """Of one expert."""
        return B.shape[-1] // router.shape[-2]

    def output(
        self,
        x: Tensor,
        y: Tensor,
        base: Base,
        A: Tensor,
        B: Tensor,
        router: Tensor,
        bias: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        low = self._low(F.linear, x, base, self.rank(B, router), A, router, bias, shift)
        return y + F.linear(low, B.to(x.dtype) * self.scale)

    def trained(
        self, x: Tensor, y: Tensor, base: Base, weight: Tensor | None, A: Tensor, B: Tensor, router: Tensor,
        bias: Tensor | None = None, shift: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`output` with the graph of `fused`, written over y."""
        if x.dtype is not torch.float32 or not fused.recorded(x, y, A, B, router):
            return self.output(x, y, base, A, B, router, bias, shift)
        low = self._low(fused.low, x, base, self.rank(B, router), A, router, bias, shift)
        return fused.raised(low, y, B, self.scale)

    def grouped(
        self,
        x: Tensor,
        y: Tensor,
        base: Base,
        A: Tensor,
        B: Tensor,
        router: Tensor,
        bias: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """`output` of n readers at once: x (n, T, d_in), A (n, E r, d_in), ..."""
        bias, shift = (None if b is None else b[:, None] for b in (bias, shift))
        low = self._low(each, x, base, self.rank(B, router), A, router, bias, shift)
        return y + each(low, B.to(x.dtype) * self.scale)

    def _low(
        self,
        product: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        base: Any,
        r: int,
        A: Tensor,
        router: Tensor,
        bias: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        """g_e A_e x of every expert, side by side: (..., E r)."""
        low = F.dropout(x, self.dropout) if self.dropout and base.training else x
        if x.dtype is torch.float32 and not self.source and (self.dropped or low is x):  # one product for both
            both = product(low, torch.cat([A, router], -2))
            h, logits = both.split([A.shape[-2], router.shape[-2]], -1)
        else:
            asked = base.lent(self.source) if self.source else low if self.dropped else x
            h, logits = product(low, A.to(x.dtype)), product(asked.float(), router)
        logits = logits if bias is None else logits + bias
        if not self.quiet:
            tell(base, logits)
        g = self.gates(logits, shift).to(x.dtype)[..., None]
        return (h.unflatten(-1, (-1, r)) * g).flatten(-2)  # one A for all experts is as wide as one of them
