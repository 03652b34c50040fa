"""A weight of binary codes and scales in place of the base's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, serial


def decode(codes: Tensor, alpha: Tensor, first: int = 0) -> Tensor:
    """sum_i alpha_i o B_i over the bits from `first` on. Shapes: codes (d_out, d_in) uint8, bit i of a number 1 where
    B_i is +1; alpha (q, d_out, g), one scale per bit, row and group of d_in / g columns -> (d_out, d_in)."""
    w = alpha.new_zeros(codes.shape[0], alpha.shape[-1], codes.shape[1] // alpha.shape[-1])
    for i, scale in enumerate(alpha):
        b = (codes.view(w.shape) >> (first + i) & 1).to(alpha.dtype).mul_(2).sub_(1)
        w = torch.addcmul(w, b, scale[..., None])
    return w.view(codes.shape)


@serial
@dataclass(frozen=True)
class Coded:
    """w' = sum_i a_i o B_i with a_i = alpha_i (1 + gain_i) for the first k bits, a_i = alpha_i for the rest.

    The frozen w is not read; the bias stays. Shapes: codes (d_out, d_in) uint8, alpha (q, d_out, g), gain
    (k, d_out, g), k <= q, g groups of columns in a row. Linear in: gain (affine).
    Cost of `output` with g = 1: 1 + k products of T d_in d_out and as many decodings, as x W_q^T + (x B_i^T) (alpha_i
    gain_i), so that no gradient of the size of w is made and, in `grouped`, all readers share x B_i^T; with g > 1 the
    decoding of w' and one product, for every reader.
    """

    precise: ClassVar[bool] = True  # the gains are small beside 1

    def weight(self, w: Tensor, codes: Tensor, alpha: Tensor, gain: Tensor) -> Tensor:
        k = len(gain)
        return decode(codes, torch.cat([alpha[:k] * (1 + gain), alpha[k:]]))

    def output(self, x: Tensor, y: Tensor, base: Base, codes: Tensor, alpha: Tensor, gain: Tensor) -> Tensor:
        if alpha.shape[-1] > 1:
            return F.linear(x, self.weight(base.weight, codes, alpha, gain).to(x.dtype), base.bias)
        return self.by_rows(x, base.bias, codes, alpha, gain)

    def grouped(self, x: Tensor, y: Tensor, base: Base, codes: Tensor, alpha: Tensor, gain: Tensor) -> Tensor:
        """`output` of n readers: x (n, T, d_in). Codes and alpha come from the base: every reader's are the same."""
        if alpha.shape[-1] == 1:
            return self.by_rows(x, base.bias, codes[0], alpha[0], gain.unsqueeze(2).movedim(0, 1))
        each = torch.stack([self.weight(base.weight, codes[0], alpha[0], g) for g in gain]).to(x.dtype)
        out = torch.bmm(x, each.mT)
        return out if base.bias is None else out + base.bias

    def by_rows(self, x: Tensor, bias: Tensor | None, codes: Tensor, alpha: Tensor, gain: Tensor) -> Tensor:
        """gain (k, d_out, 1), or (k, n, 1, d_out, 1) for n readers."""
        y = F.linear(x, decode(codes, alpha).to(x.dtype), bias)
        for i, g in enumerate(gain):
            b = decode(codes, torch.ones_like(alpha[:1]), i).to(x.dtype)
            y = y + F.linear(x, b) * (alpha[i, :, 0] * g.squeeze(-1)).to(x.dtype)
        return y
