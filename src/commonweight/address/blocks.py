"""Block matrices of small ones: along the diagonal, and dealt out between the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class BlockDiagonal:
    """k matrices along the diagonal, each transposed. Shapes: pool (k, d, r) -> (k r, k d). Linear in: pool."""

    def __call__(self, pool: Tensor) -> Tensor:
        k, d, r = pool.shape
        eye = torch.eye(k, dtype=pool.dtype, device=pool.device)
        return torch.einsum("kdr,kj->krjd", pool, eye).reshape(k * r, k * d)


@serial
@dataclass(frozen=True)
class Dealt:
    """The left factor of GraLoRA: output block m reads part m of the r ranks of every input block n.

    Shapes: pool (k, r, d), row n r / k + q of matrix m for rank q of that part -> (k d, k r). Linear in: pool.
    Source: arXiv 2505.20355; the order as in PEFT 0.21.2.
    """

    def __call__(self, pool: Tensor) -> Tensor:
        k, r, d = pool.shape
        eye = torch.eye(k, dtype=pool.dtype, device=pool.device)
        return torch.einsum("mnqd,mj->mdnjq", pool.view(k, k, r // k, d), eye).reshape(k * d, k * r)
