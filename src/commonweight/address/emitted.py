"""Matrices that hypernetworks make of a code: factorised and enlarged, or one after another by a recurrent network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Enlarged:
    """W = S kron (H1(e) H2(e)), H(e) = sum_i e_i H_i. Shapes: pool H1 (m, r, k), H2 (m, k, d), code (m,), scale (a, b)
    -> (a r, b d). Linear in: H1, and each of the others alone. Cost: m (r + d) k + a r b d products.

    Source: Polyhistor, arXiv 2210.03265, by its abstract: factorised hypernetworks and layer-wise scaling kernels.
    """

    def __call__(self, pool: Tensor, right: Tensor, code: Tensor, scale: Tensor) -> Tensor:
        return torch.kron(scale, torch.tensordot(code, pool, 1) @ torch.tensordot(code, right, 1))


@serial
@dataclass(frozen=True)
class Emitted:
    """W_l = head h_l, h_l the state of an LSTM after l steps, which begins with the code.

    Shapes: pool, the head (h, n); code (h,), inputs (L, m), of each step its own; an LSTM's weights wi (4 h, m),
    wh (4 h, h) and biases (4 h,) each -> `shape` with n numbers. Linear in: pool. Cost: `step` + 1 cells, h n products.
    alone: the one step from the code, without those before it. Source: dependency-preserving hypernetworks, arXiv
    2209.07712, by its abstract.
    """

    step: int
    shape: tuple[int, ...]
    alone: bool = False
    mapped: ClassVar[bool] = False  # torch's vmap has no rule for an LSTM's cell

    def __call__(
        self, pool: Tensor, code: Tensor, inputs: Tensor, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor
    ) -> Tensor:
        h, c = code[None], torch.zeros_like(code)[None]
        for at in (self.step,) if self.alone else range(self.step + 1):
            h, c = torch.lstm_cell(inputs[at][None], (h, c), wi, wh, bi, bh)
        n = math.prod(self.shape)
        return (h[0] @ pool[:, :n]).view(self.shape)
