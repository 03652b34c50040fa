"""One bit a number: which of two levels."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...core import CommonweightError, config

SHIFTS = tuple(range(8))


@config
class OneBit:
    """1 bit a number and 8 bytes a matrix (of a vector: 8 in all), without loss: for matrices of at most two values.

    Stored: uint8 (8 m + ceil(n / 8),), the lower and the upper level of each of the m matrices as float32, then a bit
    for each of the n numbers of the flat tensor, 1 for the upper level, the first number in the lowest bit.
    """

    uses_first: ClassVar[bool] = False
    needs_first: ClassVar[bool] = False

    def encode(self, value: Tensor, first: Tensor | None) -> Tensor:
        count = _matrices(tuple(value.shape))
        if not two_levels(value):
            raise CommonweightError(f"codec onebit stores two values of a matrix; {tuple(value.shape)} has more in one")
        if not value.numel():
            return torch.zeros(8 * count, dtype=torch.uint8)
        found = [_two(row) for row in value.float().reshape(count, -1)]
        ends = torch.stack([torch.stack([low, high]) for low, high, _ in found])
        up = torch.cat([up for *_, up in found]).to(torch.uint8)
        bits = torch.nn.functional.pad(up, (0, -len(up) % 8)).reshape(-1, 8)
        packed = torch.stack([bits[:, i] << i for i in SHIFTS]).sum(0, dtype=torch.uint8)
        return torch.cat([ends.flatten().view(torch.uint8), packed])

    def decode(self, stored: Tensor, shape: tuple[int, ...], first: Tensor | None) -> Tensor:
        n, count = math.prod(shape), _matrices(shape)
        wanted = (8 * count + -(-n // 8),)
        if stored.dtype != torch.uint8 or tuple(stored.shape) != wanted:
            raise CommonweightError(f"is {tuple(stored.shape)} {stored.dtype}, wanted {wanted} torch.uint8")
        if not n:
            return torch.zeros(shape)
        low, high = stored[: 8 * count].clone().view(torch.float32).view(count, 2, 1).unbind(1)
        bits = torch.stack([stored[8 * count :] >> i & 1 for i in SHIFTS], 1).flatten()[:n]
        return torch.where(bits.bool().view(count, -1), high, low).reshape(shape)


def refuse(method: str, levels: bool) -> None:
    """Raises: CommonweightError for a method that does not answer by two levels of its numbers."""
    if not levels:
        raise CommonweightError(
            f"{method}: codec onebit stores matrices of two values, as bi-lora and bi-adaptformer train them; take "
            "int8 or int4, or one of these methods"
        )


def _matrices(shape: tuple[int, ...]) -> int:
    """How many have levels of their own: layers' pools of one kind lie in one tensor."""
    return math.prod(shape[:-2])


def two_levels(x: Tensor) -> bool:
    """Whether each matrix of x, or a vector, has at most two values, and so is stored exactly."""
    if not x.numel():
        return True
    rows = x.reshape(_matrices(tuple(x.shape)), -1)
    return bool(((rows == rows.amin(1, True)) | (rows == rows.amax(1, True))).all())


def _two(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(lower, upper, which are upper) of one matrix."""
    low, high = flat.min(), flat.max()
    up = flat == high
    return (high, high, torch.ones_like(up)) if low == high else (low, high, up)  # -0.0 equals 0.0
