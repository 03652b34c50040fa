"""Moment probing: a row's answer goes by second moments of its tokens, of what the last block gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...bind.one_expert import real_tokens
from ...core import ONES, ZEROS, Base, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ..adapters import psrp
from ..head import head
from ..registry import method


@config
class MP:
    width: int = option(512, "numbers of a token of which second moments are taken, all heads together", ge=14)
    heads: int = option(4, "groups of these numbers; moments are between neighbours", ge=2)
    size: int = option(16, "rank r of what the last block's states get of the moments; ours", ge=1)
    psrp: int = option(0, "width of a bottleneck beside every feed-forward part (MP+; 16 in the paper); 0: none", ge=0)
    compat: Literal["paper", "official"] = option(
        "paper", "official: one mean over all tokens and channels is taken off, as the published code does"
    )
    second: bool = option(
        False,
        "whether the moments have a linear head of their own, as in the paper, in place of a low rank",
    )

    def check(self) -> str | None:
        if self.width % self.heads:
            return f"width={self.width} is not a multiple of heads={self.heads}"
        if self.width // self.heads < 7:
            return f"a head of {self.width // self.heads} numbers is too narrow for the two convolutions; at least 7"
        return None

    @property
    def moments(self) -> int:
        """Numbers that two convolutions of stride 2, without padding, leave of (heads - 1, head, head)."""
        side = self.width // self.heads
        for _ in range(2):
            side = (side - 3) // 2 + 1
        return (self.heads - 1) * side * side


@serial
@dataclass(frozen=True)
class Moments:
    """y' = y + U V m(z), one m for all tokens of a row; z = LN_heads(P y + p) of its tokens that are no padding.

    m: C_i = Z_i^T Z_i+1 / N for neighbouring heads, the mean taken off Z, each column of length 1; then
    K_2 * gelu(K_1 * C), convolutions of 3 x 3 and stride 2 with the h - 1 matrices C as channels, laid flat.
    Shapes: P (w, d), p (w,), gain and shift (w / h,), K (2, h - 1, h - 1, 3, 3), V (r, moments), U (d, r). Linear in:
    U. Nothing goes back through the block. scalar: one mean over tokens and channels. base.there: which tokens are no
    padding, bool (rows, T). Cost: T d w + (h - 1) T (w / h)^2 products a row.
    Raises: CommonweightError where nobody says which tokens are padding.
    """

    heads: int
    scalar: bool = False
    tokenwise: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    precise: ClassVar[bool] = True

    def output(self, x: Tensor, y: Tensor, base: Base, **slots: Tensor) -> Tensor:
        rows = y.reshape(len(y), -1, y.shape[-1])
        every = {k: v.expand(len(rows), *v.shape) for k, v in slots.items()}
        return self.grouped(x, rows, base, **every).reshape(y.shape)

    def grouped(
        self, x: Tensor, y: Tensor, base: Base, V: Tensor, U: Tensor, **moments: Tensor
    ) -> Tensor:  # fmt: skip
        """`output` of n readers of a row each: y (n, T, d), P (n, w, d), ..."""
        added = torch.einsum("ndr,nrm,nm->nd", U, V, self.moments(y, real_tokens(y, base), **moments))
        return y + added[:, None].to(y.dtype)

    def moments(
        self, y: Tensor, real: Tensor, P: Tensor, p: Tensor, gain: Tensor, shift: Tensor, K: Tensor
    ) -> Tensor:  # fmt: skip
        """m of n rows, (n, moments); real (n, T, 1)."""
        z = torch.baddbmm(p[:, None], y.float(), P.mT).unflatten(-1, (self.heads, -1))
        z = F.layer_norm(z, z.shape[-1:]) * gain[:, None, None] + shift[:, None, None]
        return convolved(self.crossed(z, real), K)

    def crossed(self, z: Tensor, real: Tensor) -> Tensor:
        """(n, h - 1, w / h, w / h) of z (n, T, h, w / h)."""
        real = real[..., None]
        many = real.sum(1, keepdim=True).clamp(min=1)
        mean = (z * real).sum(1, keepdim=True) / many
        if self.scalar:
            mean = mean.mean(-1, keepdim=True)
        z = (z - mean) * real
        c = torch.einsum("nthi,nthj->nhij", z[:, :, :-1], z[:, :, 1:]) / many
        return F.normalize(c, dim=2)


@serial
@dataclass(frozen=True)
class Hands:
    """y as it is. What the site gives can be read by a bind whose `source` it is, later in the same pass, and behind it
    in the last place 1 for a token and 0 for padding."""

    anywhere: ClassVar[str] = "output"
    tokenwise: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    lends: ClassVar[bool] = True
    hands: ClassVar[bool] = True

    def output(self, x: Tensor, y: Tensor, base: Any) -> Tensor:
        return y


@serial
@dataclass(frozen=True)
class TwoHeads:
    """logits = (W f + b + V m + c) / 2, f the head's features, m as `Moments` of what `source` gives.

    Shapes: W (K, d), b (K,), V (K, moments), c (K,), the rest as `Moments`. Linear in: W and b, V and c.
    """

    heads: int
    source: str
    scalar: bool = False
    precise: ClassVar[bool] = True

    def output(
        self, x: Tensor, y: Tensor, base: Any, W: Tensor, b: Tensor, V: Tensor, c: Tensor, **moments: Tensor
    ) -> Tensor:
        given = base.lent(self.source)
        every = {k: t.expand(len(given), *t.shape) for k, t in moments.items()}
        m = Moments(self.heads, self.scalar).moments(given[..., :-1], given[..., -1:].float(), **every)
        return (F.linear(x.to(W.dtype), W, b) + F.linear(m, V, c)) / 2


def convolved(c: Tensor, K: Tensor) -> Tensor:
    """(n, moments) of c (n, channels, s, s) by each reader's own kernels K (n, 2, channels, channels, 3, 3)."""
    n = len(c)
    one = c.reshape(1, -1, *c.shape[2:])
    one = F.conv2d(one, K[:, 0].flatten(0, 1), stride=2, groups=n)
    return F.conv2d(F.gelu(one), K[:, 1].flatten(0, 1), stride=2, groups=n).reshape(n, -1)


def _moments(width: int, config: MP) -> dict[str, Pool]:
    w, h = config.width, config.heads
    return {
        "P": Pool((w, width), kaiming(width)),
        "p": Pool((w,), kaiming(width)),
        "gain": Pool((w // h,), ONES),
        "shift": Pool((w // h,), ZEROS),
        "K": Pool((2, h - 1, h - 1, 3, 3), kaiming(9 * (h - 1))),
    }


def _heads(config: MP, sites: Sequence[Site], site: Site, labels: int) -> Plan:
    """Both heads, at the place of the plain one."""
    plain = head(site, labels)
    if not config.second:
        return plain
    last, m, n = [s for s in sites if s.kind == "block"][-1], config.moments, site.name
    mine = {f"{n}.{k}": p for k, p in _moments(last.out, config).items()}
    mine |= {f"{n}.V": Pool((labels, m), kaiming(m), lr=5.0), f"{n}.c": Pool((labels,), ZEROS, lr=5.0)}
    pools = {**plain.pools, **mine}
    bind = TwoHeads(config.heads, last.name, config.compat == "official")
    return Plan(pools, (Use(n, bind, {k.rpartition(".")[2]: Read(WHOLE, (k,)) for k in pools}),))


@method(
    "mp",
    MP,
    paper="Tuning Pre-trained Model via Moment Probing, arXiv 2307.11342",
    formula="w (d + 1) + 2 w / h + 18 (h - 1)^2 + r (m + d), m = 2,883 numbers of "
    "moments; psrp: r' (d_in + 2 d_out) a part",
    kinds=("block", "ffn"),
    named=(),
    whole=True,
    size=("size", "psrp"),
    heads=_heads,
)
def plan(sites: Sequence[Site], config: MP) -> Plan:
    """logits = W (f + U V m) + b: f the head's features, m the second moments of a row's tokens (`Moments`), of what
    the last block gives. With `psrp` every feed-forward part is also scaled and shifted as by the method of that name.

    Shapes: as `Moments`; of the blocks the last one is read. U is zero at the start, so that a fresh tenant is the
    base. Linear in: U. Of encoders alone, of texts and of images. Without `psrp` no gradient goes through the model.
    Source: arXiv 2307.11342; github.com/mingzeG/Moment-Probing @0ddc040, models/representation/MP.py, class Covariance:
    there the mean that is taken off is one number for all tokens and channels, where the paper has a covariance.
    second=True is the paper's: a linear head of m beside that of f, logits = (W f + b + V m + c) / 2 (`TwoHeads`), of a
    tenant with labels; it is a part of the tenant's head. Without it m is added to the features through a low rank, so
    that it is of use without a classifier too: with r of the number of classes or more the two say the same, but for
    the factor of a half, and for a norm where one stands behind the last block. Differs: all tokens of a row are read,
    where theirs are the patches without the first token; V begins as torch's linear layers, c at zero.
    Ours: U, V and r. Raises: CommonweightError in causal blocks.
    """
    blocks = [s for s in sites if s.kind == "block"]
    parts = [s for s in sites if s.kind == "ffn"] if config.psrp else []
    pools, uses = {}, []
    if parts:
        beside = psrp.plan(parts, psrp.PSRP(size=config.psrp))
        pools, uses = dict(beside.pools), [*beside.uses]
    m, r = config.moments, config.size
    for s in blocks[-1:]:
        if config.second:
            uses.append(Use(s.name, Hands(), {}))
            continue
        slots = {**_moments(s.out, config), "V": Pool((r, m), kaiming(m)), "U": Pool((s.out, r), ZEROS)}
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}
        uses.append(Use(s.name, Moments(config.heads, config.compat == "official"), reads))
    return Plan(pools, tuple(uses))
