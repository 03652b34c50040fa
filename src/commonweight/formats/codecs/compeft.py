"""ComPEFT: the signs of the largest changes, times one number for the tensor."""

from __future__ import annotations

import math
import struct
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...core import CommonweightError, config, option
from ...core.ternary import ternary
from . import golomb
from .absmax import BESIDE, LEAST

HEAD = struct.Struct("<HBQ")  # the scale as bfloat16, the low bits b of a gap, the count k


@config
class Compeft:
    """A sparse ternary change: value = first + s t, t in {-1, 0, 1} and not 0 for the `density` of largest changes.

    s, in bfloat16, keeps the norm of the change: sqrt(sum of squares / kept changes), the paper's alpha * sigma
    with alpha = 1 / sqrt(density). The paper chooses alpha on validation rows; that is done before saving, by scaling
    the change of a tenant loaded from such a file: changes that are ternary already are stored as they are.
    Stored: uint8 (bytes,): `HEAD`, k signs, k low parts of b bits, and the high parts of the k gaps between kept
    places, in unary. That is the Golomb code with divisor 2**b; b is the cheapest, and b = 0 is a bit mask. At density
    0.2 about 0.95 bits a number, at 0.05 about 0.35.
    Source: arXiv 2311.13171, algorithm 1. Differs: density and s are those of one stored tensor, not of the whole task
    vector, so that what a tensor becomes does not depend on the tensors beside it; s is not tuned. Of least squared
    error would be the mean of the kept magnitudes; that shrinks the change, and loses more accuracy.
    """

    density: float = option(0.5, "share of the numbers that keep a change; the paper: 0.05 to 0.5", gt=0, le=1)
    uses_first: ClassVar[bool] = True
    needs_first: ClassVar[bool] = True

    def encode(self, value: Tensor, first: Tensor | None) -> Tensor:
        change = (value.double() if first is None else value.double() - first.double()).flatten()
        signs, _ = ternary(change, self.density)
        places = signs.nonzero()[:, 0]
        scale = (change.norm() / max(1, len(places)) ** 0.5).bfloat16()
        near = 0.0 if first is None or not len(change) else BESIDE * first.abs().max().item()
        if scale.item() < max(LEAST, near):
            places, scale = places[:0], scale.new_zeros(())
        b, high, low = golomb.coded(np.diff(places.numpy(), prepend=-1) - 1)
        bits = (signs[places].numpy() < 0, low, high)
        body = b"".join(np.packbits(part, bitorder="little").tobytes() for part in bits)
        head = HEAD.pack(int(scale.view(torch.int16)) & 0xFFFF, b, len(places))
        return torch.frombuffer(bytearray(head + body), dtype=torch.uint8)

    def decode(self, stored: Tensor, shape: tuple[int, ...], first: Tensor | None) -> Tensor:
        n = math.prod(shape)
        if stored.dtype != torch.uint8 or stored.dim() != 1 or len(stored) < HEAD.size:
            raise CommonweightError(f"is {tuple(stored.shape)} {stored.dtype}, wanted {HEAD.size} bytes or more")
        scale, b, k = HEAD.unpack(stored[: HEAD.size].numpy().tobytes())
        found = _places(stored[HEAD.size :].numpy(), n, b, k)
        if found is None:
            raise CommonweightError(f"is no list of {k} places below {n:,}: it was altered")
        places, minus = found
        out = torch.zeros(n, dtype=torch.float64) if first is None else first.double().flatten()
        size = torch.tensor(scale, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).item()
        out[torch.from_numpy(places)] += torch.from_numpy(np.where(minus, -size, size))
        return out.reshape(shape).float()


def _places(body: np.ndarray, n: int, b: int, k: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(kept places, which of them are negative); None for anything that `Compeft.encode` does not write."""
    signs = -(-k // 8)
    if k > n or len(body) < signs:
        return None
    minus = np.unpackbits(body[:signs], bitorder="little")[:k].astype(bool)
    gaps = golomb.decoded(body[signs:], b, k)
    if gaps is None:
        return None
    places = np.cumsum(gaps + 1) - 1
    return (places, minus) if not k or places[-1] < n else None
