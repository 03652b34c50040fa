"""Mixtures of a bank's vectors. Linear in the bank; the weights of the mixture are coefficients, trained ones too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..core import serial


def _lay(vectors: Tensor, transpose: bool) -> Tensor:
    """(m, n, b) -> (m, n b), or with `transpose` -> (m b, n)."""
    return vectors.mT.flatten(0, 1) if transpose else vectors.flatten(1)


@serial
@dataclass(frozen=True)
class TopK:
    """Every sub-vector is a mixture of the k bank vectors with the largest logits, weighted by their softmax.

    Shapes: bank (h, b), logits (m, n, h) -> (m, n b), or (m b, n) with `transpose`: sub-vectors run down a column.
    Linear in: bank. Gradients reach the k logits that were chosen. Cost: k b reads per sub-vector.
    Source: VB-LoRA, arXiv 2405.15179, section 3.2.
    """

    k: int
    transpose: bool = False

    def __call__(self, bank: Tensor, logits: Tensor) -> Tensor:
        top, index = logits.topk(self.k, dim=-1)
        return _lay((F.embedding(index, bank) * top.softmax(-1)[..., None]).sum(-2), self.transpose)


@serial
@dataclass(frozen=True)
class Chosen:
    """`TopK` with the choice made: only the k logits that count are kept, beside the numbers of their vectors.

    Shapes: bank (h, b), index (m, n, k) integers, logits (m, n, k) -> as TopK. Linear in: bank.
    """

    transpose: bool = False

    def __call__(self, bank: Tensor, index: Tensor, logits: Tensor) -> Tensor:
        return _lay((F.embedding(index.long(), bank) * logits.softmax(-1)[..., None]).sum(-2), self.transpose)
