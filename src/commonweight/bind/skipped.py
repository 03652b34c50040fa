"""Gates of tokens: which of them a block, or a part of one, is computed for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial
from .bottleneck import Parallel
from .mixture import tell


@serial
@dataclass(frozen=True)
class TokenSelect:
    """A part for the tokens that a linear score keeps, and an adapter beside it for all of them.

    y' = g y + scale (up relu(down x + down_bias) + up_bias); g = 1 where the logit select x + select_bias > 0, else 0.
    In training g = 1 where logit + G1 - G2 > 0, G of Gumbel(0, 1), with the gradient of sigmoid((logit + G1 - G2) /
    tau); where gradients are recorded without training, the same without noise. first: the first token of a row,
    padding aside, is always kept. Shapes: select (d,), select_bias (1,), the rest as in Parallel. Linear in: up and
    up_bias, each alone.
    Source: arXiv 2403.11808; github.com/NUS-HPC-AI-Lab/Dynamic-Tuning @d1744f0, `TokenSelect`.
    """

    scale: float = 1.0
    tau: float = 5.0
    first: bool = False

    @property
    def tokenwise(self) -> bool:
        return not self.first

    @property
    def placed(self) -> bool:
        return self.first

    def opens(
        self, x: Tensor, base: Base, there: Tensor | None, select: Tensor, select_bias: Tensor, **_: Tensor
    ) -> Tensor:
        logit = (x * select[..., None, :]).sum(-1) + select_bias
        if base.training:
            logit = logit + logistic(logit)
        g = (logit > 0).to(x.dtype)
        if torch.is_grad_enabled():
            soft = torch.sigmoid(logit / self.tau)
            g = g + soft - soft.detach()
        if self.first:
            g = torch.where(base.place[..., 0] == 0, torch.ones_like(g), g)
        tell(base, g[..., None])
        return g

    def output(self, x: Tensor, y: Tensor, base: Base, select: Tensor, select_bias: Tensor, **slots: Any) -> Tensor:
        return Parallel("relu", self.scale).output(x, y, base, **slots)

    def grouped(self, x: Tensor, y: Tensor, base: Base, select: Tensor, select_bias: Tensor, **slots: Any) -> Tensor:
        """`output` of n readers at once: x and y (n, T, d), every slot with a leading n."""
        return Parallel("relu", self.scale).grouped(x, y, base, **slots)


def logistic(like: Tensor) -> Tensor:
    """The difference of two Gumbel(0, 1) numbers: -log(-log U) of one less that of the other."""
    u = torch.rand_like(like, dtype=torch.float32).clamp(1e-7, 1 - 1e-7)
    return (u.log() - (-u).log1p()).to(like.dtype)


@serial
@dataclass(frozen=True)
class SoftTopK:
    """A block for the tokens of a row that score best, and an adapter beside it for all of them.

    y' = x + m (block(x) - x) + scale (up relu(down x + down_bias) + up_bias). s = select LN(x), LN without weights;
    m = `soft_top_k(s, k)` at the k = T / reduction (rounded up) tokens of the largest s, else 0, of a row of T tokens
    that are no padding. Shapes: select (d,), the rest as in Parallel. Linear in: up and up_bias, each alone.
    Source: arXiv 2304.04947.
    """

    reduction: float = 2.0
    scale: float = 1.0
    eps: float = 0.03
    steps: int = 20
    tokenwise: ClassVar[bool] = False  # which tokens a row keeps depends on all of them

    def opens(self, x: Tensor, base: Base, there: Tensor | None, select: Tensor, **_: Tensor) -> Tensor:
        s = (F.layer_norm(x, x.shape[-1:]) * select[..., None, :]).sum(-1).float()
        there = torch.ones_like(s, dtype=torch.bool) if there is None else there
        k = (there.sum(-1, keepdim=True) / self.reduction).ceil()
        s = s.masked_fill(~there, -1e6)
        rank = s.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        m = soft_top_k(s, k.clamp(min=1), self.eps, self.steps)
        return torch.where((rank < k) & there, m.clamp(min=1e-6), 0).to(x.dtype)

    def output(self, x: Tensor, y: Tensor, base: Base, select: Tensor, **slots: Any) -> Tensor:
        return Parallel("relu", self.scale).output(x, y, base, **slots)

    def grouped(self, x: Tensor, y: Tensor, base: Base, select: Tensor, **slots: Any) -> Tensor:
        """`output` of n readers at once: x and y (n, T, d), every slot with a leading n."""
        return Parallel("relu", self.scale).grouped(x, y, base, **slots)


@serial
@dataclass(frozen=True)
class Instead:
    """An adapter in the place of a block. y' = x + up relu(down LN(x) + down_bias) + up_bias where `open` is 0, the
    block's own output where it is 1; without a slot `open` it is 0.

    LN has the weights norm and norm_bias (d,), and adds 1e-5 to the variance. Shapes: open (1,), the rest as in
    Parallel. Linear in: up and up_bias, each alone. Cost: 2 T r d products, and the block where it is open.
    Source: github.com/DoubtedSteam/DAS @1d6a0d6, efficientmodules.py `ParallelAdapter`.
    """

    def opens(self, x: Tensor, base: Base, there: Tensor | None, open: Tensor | None = None, **_: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1]) if open is None else open.expand(x.shape[:-1])

    def output(
        self, x: Tensor, y: Tensor, base: Base, norm: Tensor, norm_bias: Tensor, down: Tensor, down_bias: Tensor,
        up: Tensor, up_bias: Tensor, open: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        h = torch.relu(F.linear(F.layer_norm(x, x.shape[-1:], norm, norm_bias), down, down_bias))
        more = F.linear(h, up, up_bias)
        return y + more if open is None else torch.addcmul(y, 1 - open, more)

    def grouped(
        self, x: Tensor, y: Tensor, base: Base, norm: Tensor, norm_bias: Tensor, down: Tensor, down_bias: Tensor,
        up: Tensor, up_bias: Tensor, open: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`output` of n readers at once: x and y (n, T, d), every slot with a leading n."""
        z = torch.addcmul(norm_bias[:, None], F.layer_norm(x, x.shape[-1:]), norm[:, None])
        more = torch.baddbmm(up_bias[:, None], torch.relu(torch.baddbmm(down_bias[:, None], z, down.mT)), up.mT)
        return y + more if open is None else torch.addcmul(y, 1 - open[:, None], more)


def soft_top_k(s: Tensor, k: Tensor, eps: float, steps: int) -> Tensor:
    """Numbers in [0, 1] for scores s (..., T) whose sum is near k (..., 1): coordinate descent on the dual of the
    linear program with an entropy term, at a temperature that falls from 4 by 0.7 a step, no lower than eps.

    a = e ln k - e logsumexp((s + b) / e), b = min(-s - a, 0); exp((s + a + b) / e). With few steps and a small eps the
    sum is not k yet. Source: the published code of CoLT5's router, github.com/lucidrains/CoLT5-attention @f2a8da0.
    """
    a, b = torch.zeros_like(k), torch.zeros_like(s)
    last = e = max(4.0, eps)
    for _ in range(steps):
        a = e * k.log() - e * torch.logsumexp((s + b) / e, -1, keepdim=True)
        b = torch.minimum(-s - a, torch.zeros_like(s))
        last, e = e, max(0.7 * e, eps)
    return ((s + a + b) / last).exp()
