"""bfloat16: the upper half of a float32, rounded to nearest."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...core import CommonweightError, config


@config
class Bfloat16:
    """2 bytes a number, 8 bits of precision. Shape: the value's, dtype bfloat16."""

    uses_first: ClassVar[bool] = False
    needs_first: ClassVar[bool] = False

    def encode(self, value: Tensor, first: Tensor | None) -> Tensor:
        return value.bfloat16()

    def decode(self, stored: Tensor, shape: tuple[int, ...], first: Tensor | None) -> Tensor:
        if stored.dtype != torch.bfloat16 or tuple(stored.shape) != shape:
            raise CommonweightError(f"is {tuple(stored.shape)} {stored.dtype}, wanted {shape} torch.bfloat16")
        return stored.float()
