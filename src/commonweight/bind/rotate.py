"""Rotations: of pairs of output dimensions (RoAd), of blocks of the input (OFT), of blocks by a butterfly (BOFT).

A block rotation of the input is computed as x + x (R - I), so that a small angle survives half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Base, serial


def skew(vec: Tensor, block: int) -> Tensor:
    """Skew-symmetric matrices from their upper triangles, row by row. Shapes: (n, b (b - 1) / 2) -> (n, b, b)."""
    rows, cols = torch.triu_indices(block, block, 1, device=vec.device)
    upper = vec.new_zeros(len(vec), block, block)
    upper[:, rows, cols] = vec
    return upper - upper.mT


def cayley(Q: Tensor) -> Tensor:
    """(I - Q) (I + Q)^-1 - I, orthogonal less I for a skew Q. Shapes: (n, b, b). Cost: n solves of b^3."""
    eye = torch.eye(Q.shape[-1], device=Q.device, dtype=Q.dtype)
    return torch.linalg.solve(eye + Q, -2.0 * Q, left=False)


def neumann(Q: Tensor, terms: int) -> Tensor:
    """2 Q + 2 Q^2 + ... + 2 Q^(terms - 2) + Q^(terms - 1), close to (I + Q) (I - Q)^-1 - I for a small Q.

    It turns the other way than `cayley` does, and three terms are the same as four: both as in PEFT.
    Cost: n (terms - 2) products of b^3.
    """
    out, power = 2.0 * Q, Q
    if terms > 2:
        for _ in range(max(terms - 3, 1)):
            power = power @ Q
            out = out + 2.0 * power
        out = out + power @ Q
    return out


def turn(x: Tensor, D: Tensor) -> Tensor:
    """x blockdiag(I + D). Shapes: x (..., n b), D (n, b, b), or (1, b, b) for one matrix that all blocks share."""
    parts = x.unflatten(-1, (-1, D.shape[-1]))
    D = D.to(x.dtype)
    moved = parts @ D[0] if len(D) == 1 else torch.einsum("...nk,nkc->...nc", parts, D)
    return x + moved.flatten(-2)


@serial
@dataclass(frozen=True)
class RotatePairs:
    """y' = R y: dimension j of a group is turned and stretched with dimension j + group / 2; the bias as well.

    Shapes: theta and alpha (d_out / 2,) for one angle a pair, (d_out,) for one a dimension, (2 d_out,) for one a
    matrix entry. Linear in alpha. Cost: 3 T d_out products; of `weight`: 3 d_out d_in.
    """

    group: int
    precise = True
    anywhere: ClassVar[str] = "through"  # it mixes outputs, which in a convolution of groups read other inputs

    def factors_of(self, theta: Tensor, alpha: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """What a dimension and what its partner is multiplied by. Shapes: theta (*n, k) -> two of (*n, d_out)."""
        lead, half = theta.shape[:-1], self.group // 2
        if theta.shape[-1] == 2 * width:
            angle, size = (v.reshape(*lead, -1, 2, self.group) for v in (theta, alpha))
            near, far = size[..., 0, :] * angle[..., 0, :].cos(), size[..., 1, :] * angle[..., 1, :].sin()
            return near.reshape(*lead, width), far.reshape(*lead, width)
        near, far = alpha * theta.cos(), alpha * theta.sin()
        if theta.shape[-1] == width:
            return near, far
        each = (*lead, width // self.group, 2, half)
        near, far = (v.reshape(*lead, -1, 1, half).expand(each).reshape(*lead, width) for v in (near, far))
        return near, far

    def rotate(self, y: Tensor, near: Tensor, far: Tensor) -> Tensor:
        first, second = y.unflatten(-1, (-1, 2, self.group // 2)).unbind(-2)
        partner = torch.stack((-second, first), -2).flatten(-3)
        return (y * near + partner * far).to(y.dtype)

    def weight(self, w: Tensor, theta: Tensor, alpha: Tensor) -> Tensor:
        return self.rotate(w.mT, *self.factors_of(theta, alpha, w.shape[0])).mT

    def bias(self, b: Tensor, theta: Tensor, alpha: Tensor) -> Tensor:
        return self.rotate(b, *self.factors_of(theta, alpha, b.shape[0]))

    def output(self, x: Tensor, y: Tensor, base: Base, theta: Tensor, alpha: Tensor) -> Tensor:
        return self.rotate(y, *self.factors_of(theta, alpha, y.shape[-1]))

    def grouped(self, x: Tensor, y: Tensor, base: Base, theta: Tensor, alpha: Tensor) -> Tensor:
        near, far = self.factors_of(theta, alpha, y.shape[-1])
        return self.rotate(y, near[:, None], far[:, None])


@serial
@dataclass(frozen=True)
class RotateBlocks:
    """x' = x blockdiag(R): w' = w blockdiag(R)^T. The bias stays.

    Shapes: R (n, b (b - 1) / 2), the upper triangles of n skew matrices, n b = d_in; or n = 1 for all blocks.
    terms: of the Neumann series, 0 for the exact Cayley map. eps: bound on the skew matrices' norm, 0 for none.
    dropout: in training, a block is left unturned with that probability. Linear in: nothing.
    Cost of `input`: T d_in b products and n b^3 for the rotations; of `weight`: d_out d_in b.
    """

    block: int
    terms: int = 5
    eps: float = 0.0
    dropout: float = 0.0
    precise = True

    def turns(self, R: Tensor) -> Tensor:
        """The rotations less I."""
        Q = skew(R, self.block)
        if self.eps:
            # The bound acts on the value, not on the gradient: else a block at the bound could not come back.
            norm = Q.detach().norm(dim=(1, 2), keepdim=True)
            Q = Q + Q.detach() * ((self.eps / sqrt(len(Q)) / norm).clamp(max=1.0) - 1.0)
        return neumann(Q, self.terms) if self.terms else cayley(Q)

    def weight(self, w: Tensor, R: Tensor) -> Tensor:
        return turn(w, self.turns(R).mT)

    def input(self, x: Tensor, base: Base, R: Tensor) -> Tensor:
        D = self.turns(R)
        if self.dropout and base.training and len(D) > 1:
            D = D * (torch.rand(len(D), 1, 1, device=D.device) >= self.dropout)
        return turn(x, D)


@serial
@dataclass(frozen=True)
class Butterfly:
    """x' = x F_(m-1) ... F_1 F_0 and y' = s (y - b) + b: w' = diag(s) w F_0^T ... F_(m-1)^T. The bias stays.

    F_i = P_i blockdiag(R_i) P_i^T: P_i brings dimensions together that lie up to 2^i blocks apart, R_i = cayley of
    the skew part of slot R[i]. Shapes: R (m, n, b, b) with n b = d_in, s (d_out,). Linear in s.
    dropout: in training, a block is left unturned with that probability.
    Cost of `input`: m T d_in b products and m n solves of b^3; of `output`: 2 T d_out; of `weight`: m d_out d_in b.
    """

    dropout: float = 0.0
    precise = True

    def turns(self, R: Tensor) -> Tensor:
        Q = 0.5 * (R - R.mT)
        return cayley(Q.flatten(0, 1)).view_as(R)

    def factor(self, x: Tensor, i: int, D: Tensor) -> Tensor:
        """x F_i: the halves of 2^i neighbouring blocks are dealt out, turned, and taken up again."""
        if i == 0:
            return turn(x, D)
        half = D.shape[-1] // 2
        dealt = x.unflatten(-1, (-1, 2, 2**i, half)).transpose(-2, -3).flatten(-4)
        return turn(dealt, D).unflatten(-1, (-1, 2**i, 2, half)).transpose(-2, -3).flatten(-4)

    def weight(self, w: Tensor, R: Tensor, s: Tensor) -> Tensor:
        for i, D in enumerate(self.turns(R)):
            w = self.factor(w, i, D.mT)
        return w * s[:, None]

    def input(self, x: Tensor, base: Base, R: Tensor, s: Tensor) -> Tensor:
        D = self.turns(R)
        if self.dropout and base.training:
            D = D * (torch.rand(*D.shape[:2], 1, 1, device=D.device) >= self.dropout)
        for i in reversed(range(len(D))):
            x = self.factor(x, i, D[i])
        return x

    def output(self, x: Tensor, y: Tensor, base: Base, R: Tensor, s: Tensor) -> Tensor:
        out = y * s if base.bias is None else y * s + base.bias * (1.0 - s)
        return out.to(y.dtype)
