"""Networks beside a trunk: x is what all of its blocks give, side by side, and last whether a token is no padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core import Base, serial


def states(x: Tensor, y: Tensor) -> list[Tensor]:
    """x (..., n d + 1) as n states (..., d), d as in y."""
    d = y.shape[-1]
    return list(x[..., :-1].split(d, -1))


def layer(t: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """w t + b; of n readers where w and b have a leading n and t is (n, T, d)."""
    return t @ w.mT if b is None else t @ w.mT + b[..., None, :]


def normed(t: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(t, t.shape[-1:]) * gain[..., None, :] + shift[..., None, :]


@serial
@dataclass(frozen=True)
class OverDepth:
    """y' = y + W_out s_n; s_l = tanh(W_s s_{l-1} + W_in x_l + b) over the n blocks' outputs x_l, s_0 = 0.

    Shapes: W_in (r, d), W_s (r, r), b (r,), W_out (d, r). Linear in: W_out. Cost: T n (r d + r^2) + T r d products.
    """

    def output(self, x: Tensor, y: Tensor, base: Base, W_in: Tensor, W_s: Tensor, b: Tensor, W_out: Tensor) -> Tensor:
        given = [layer(state, W_in, b) for state in states(x, y)[1:]]
        s = torch.tanh(given[0])
        for g in given[1:]:
            s = torch.tanh(layer(s, W_s) + g)
        return y + layer(s, W_out)

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Any) -> Tensor:
        """`output` of n readers at once: x and y (n, T, ...), every slot with a leading n."""
        return self.output(x, y, base, **slots)


@serial
@dataclass(frozen=True)
class Guidance:
    """What states say together, in place of the last: y' = LN(W_out relu(z) + b_out) + tanh(gamma / 0.1) y.

    h_i = LN(W_i x_i + b_i) of the n states, the first what the first block is given; guide g = h_n; of the others, S_j:
    red_j = sum_k relu(cos(S_j, S_k)), w_j = relu(f (S_j g) + f_bias) / red_j, w := w / (sum |w| + 1e-8), and
    z = sum_j w_j S_j + g, all for each token.
    Shapes: W (n, c, d), b, gain and shift (n, c), f (c,), f_bias and gamma (1,), W_out (d, c), the rest (d,). Cost: for
    gradients nothing is kept but x and y; all of it is computed once more in the backward pass.
    Source: arXiv 2407.07523; github.com/Paranioar/SHERL @36b4496, VSE-infty/lib/adapter_for_transformer.py.
    """

    def output(self, x: Tensor, y: Tensor, base: Base, **p: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.joined(x, y, **p)
        few = -(-x.shape[-2] // 4)  # tokens at a time, whose joined states are all that is there at once
        parts = zip(x.split(few, -2), y.split(few, -2))
        again: Any = partial(checkpoint, self.joined, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(*part, **p) for part in parts], -2)

    def joined(self, x: Tensor, y: Tensor, **p: Tensor) -> Tensor:
        *others, g = [
            normed(layer(s, p["W"][..., i, :, :], p["b"][..., i, :]), p["gain"][..., i, :], p["shift"][..., i, :])
            for i, s in enumerate(states(x, y))
        ]
        others = torch.stack(others, -2)
        length = others.norm(dim=-1).clamp(min=1e-8)
        redundant = (torch.relu(others @ others.mT) / length[..., None, :]).sum(-1) / length
        redundant = redundant.clamp(min=1.0)  # a state is as itself, by 1; one of zeros too, which has no cosine
        score = (others @ (g * p["f"][..., None, :])[..., None])[..., 0] + p["f_bias"][..., None, :]
        w = torch.relu(score) / redundant
        w = w / (w.abs().sum(-1, keepdim=True) + 1e-8)
        z = (w[..., None, :] @ others)[..., 0, :] + g
        late = normed(layer(torch.relu(z), p["W_out"], p["b_out"]), p["gain_out"], p["shift_out"])
        return late + torch.tanh(p["gamma"] / 0.1)[..., None, :] * y

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Any) -> Tensor:
        """`output` of n readers at once: x and y (n, T, ...), every slot with a leading n."""
        return self.output(x, y, base, **slots)


@serial
@dataclass(frozen=True)
class Ladder:
    """A narrow transformer that the states of a trunk feed; what it gives takes the place of the last one.

    h = W_0 x_0 + b_0; of each kept layer i: h := mu h + (1 - mu) (W_i x_i + b_i), mu = sigmoid(alpha_i / 0.1), then
    h := h + O att(N_1(h)), h := h + D gelu(U N_2(h)), N without shift and mean; at the end y' = W_up N(h) + b_up.
    A token attends to those before it where the trunk's do, and to no padding.
    Shapes, k kept layers: W (k + 1, c, d), b (k + 1, c), alpha (k,), norms (k, 2, c), qkv (k, 3 c, c), O (k, c, c),
    U (k, f, c), D (k, c, f), norm (c,), W_up (d, c), b_up (d,). Cost: T (k (c d + 4 c^2 + 2 c f) + 2 c d) products and
    the attention. Source: arXiv 2206.06522; github.com/ylsung/Ladder-Side-Tuning @1798e82, modeling_side_t5.py.
    """

    heads: int
    kept: tuple[int, ...]
    tokenwise: ClassVar[bool] = False

    def output(self, x: Tensor, y: Tensor, base: Any, **p: Tensor) -> Tensor:
        given, seen = states(x, y), self.seen(x[..., -1] > 0, base.causal)
        h = layer(given[0], p["W"][..., 0, :, :], p["b"][..., 0, :])
        for i, at in enumerate(self.kept):
            mu = torch.sigmoid(p["alpha"][..., i] / 0.1)[..., None, None]
            rung = layer(given[at + 1], p["W"][..., i + 1, :, :], p["b"][..., i + 1, :])
            h = mu * h + (1 - mu) * rung
            t = layer(rms(h, p["norms"][..., i, 0, :]), p["qkv"][..., i, :, :])
            q, k, v = (u.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for u in t.chunk(3, -1))
            score = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, float("-inf"))
            a = (score.softmax(-1) @ v).transpose(-3, -2).flatten(-2)
            h = h + layer(a, p["O"][..., i, :, :])
            t = F.gelu(layer(rms(h, p["norms"][..., i, 1, :]), p["U"][..., i, :, :]))
            h = h + layer(t, p["D"][..., i, :, :])
        return layer(rms(h, p["norm"]), p["W_up"], p["b_up"])

    def seen(self, there: Tensor, causal: bool) -> Tensor:
        """Who sees whom, (B, 1, T, T); padding sees itself, so that no row of it is empty."""
        t = there.shape[-1]
        seen = there[:, None, None, :].expand(-1, 1, t, t)
        if causal:
            seen = seen & torch.ones(t, t, dtype=torch.bool, device=there.device).tril()
        return seen | torch.eye(t, dtype=torch.bool, device=there.device)

    def grouped(self, x: Tensor, y: Tensor, base: Base, **slots: Any) -> Tensor:
        """`output` of n readers at once: x and y (n, T, ...), every slot with a leading n."""
        return self.output(x, y, base, **slots)


def rms(t: Tensor, gain: Tensor) -> Tensor:
    return t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain[..., None, :]


def narrow(d: int, reduction: int, heads: int) -> int:
    """The width of a ladder: d / reduction, made a multiple of the heads."""
    return max(1, math.ceil(d / reduction / heads)) * heads
