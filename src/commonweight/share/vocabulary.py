"""First values of a vocabulary of chunks of weights: by k-means over all of them, each weight normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Rng, serial
from ..core.spectrum import turned

SAMPLE = 1 << 16  # chunks that the entries are learnt of
ROUNDS = 10
PIECE = 4096  # chunks whose distances are in memory at a time


@serial
@dataclass(frozen=True)
class Chunks:
    """part "codebook" (K, m) | "decoder" (c, m), the leading directions of the entries | "tokens" (n,) and "size" (2,),
    mean and std, of the weight `mine`.

    Cost: 10 rounds of K distances for up to 65,536 chunks, then K distances for each chunk of the weight.
    """

    derived = True
    of: tuple[str, ...]
    entries: int
    chunk: int
    part: str
    mine: str = ""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        centres, decoder = base.once(("chunks", self.of, self.entries, self.chunk), lambda: self._learnt(base))
        m = shape[-1]
        if self.part == "decoder":
            return decoder[:, :m].clone()
        if self.part == "codebook":
            out = torch.zeros(shape)
            out[: len(centres)] = centres @ decoder[:, :m]
            return out
        w = base.stored(self.mine).float()
        if self.part == "size":
            return torch.stack([w.mean(), w.std()])
        return nearest(chunks(w, self.chunk), centres)

    def _learnt(self, base: Any) -> tuple[Tensor, Tensor]:
        """(entries (K, c), directions (c, c))."""
        data = torch.cat([chunks(base.stored(n).float(), self.chunk) for n in self.of])
        order = Rng(0, "share/vocabulary").permutation(len(data))[:SAMPLE]
        data = data[order]
        centres = data[: self.entries].clone()
        for _ in range(ROUNDS if len(data) > self.entries else 0):
            at = nearest(data, centres)
            count = torch.bincount(at, minlength=len(centres)).clamp_min(1)[:, None]
            mean = torch.zeros_like(centres).index_add_(0, at, data) / count
            centres = torch.where(torch.bincount(at, minlength=len(centres))[:, None] > 0, mean, centres)
        v = torch.linalg.svd(centres, full_matrices=True)[2].mT
        return centres, turned(v.T).T.contiguous()


def chunks(w: Tensor, size: int) -> Tensor:
    """(n, size): a weight less its mean over its std, end to end; what lacks in the last chunk is zero."""
    flat = ((w - w.mean()) / w.std()).flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def nearest(data: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([torch.cdist(piece, centres).argmin(1) for piece in data.split(PIECE)])
