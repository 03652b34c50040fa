"""Matrices laid out of the chunks that a decoder makes of codebook entries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Decoded:
    """W = mean + std * the chunks D z_t, laid end to end and cut to `shape`, z_t the codebook's entry of token t.

    Shapes: pool, the codebook (K, m); tokens (n,), n c >= the numbers of W; decoder (c, m); size (2,), mean and std ->
    shape. Linear in: pool, but for the mean. Cost: K c m products once, and one read for each number.
    Source: IGPG, arXiv 2504.02012, its first stage.
    """

    shape: tuple[int, ...]

    def __call__(self, pool: Tensor, tokens: Tensor, decoder: Tensor, size: Tensor) -> Tensor:
        chunks = torch.nn.functional.embedding(tokens.long(), pool @ decoder.mT)
        return size[0] + size[1] * chunks.reshape(-1)[: math.prod(self.shape)].view(self.shape)
