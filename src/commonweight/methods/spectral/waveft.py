"""WaveFT: a few wavelet coefficients of the change are trained, at places that the seed draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import linear, pad

from ...core import Base, Plan, Site, config, option, serial
from ..registry import method
from ..widths import within
from .fourierft import dense, placed


@config
class WaveFT:
    n_frequency: int = option(2592, "coefficients n of every site", ge=1)
    scaling: float = option(25.0, "factor on the inverse transform", gt=0)
    random_loc_seed: int = option(777, "seed of the places; PEFT's own number", ge=0)


@serial
@dataclass(frozen=True)
class Haar:
    """w' = w + scale * W^-1(C): one level of the Haar transform, C zero but for the numbers c at the given places.

    A coefficient is a block of 2 x 2 entries of size c / 2. In the right half of C the block's second row has the other
    sign, in the lower half its second column. An odd side has one row or column more, which is cut off afterwards.
    Shapes: c (n,), places (n,) into the flat C (d_out, d_in). Linear in: c. Cost of `output`: 3 T n for
    few tokens; for many (`dense`) that of a layer.
    """

    scale: float
    precise: ClassVar[bool] = True

    def blocks(self, out: int, inp: int, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(first row, first column, sign of the second row, of the second column) of each coefficient's block."""
        high, wide = (out + 1) // 2, (inp + 1) // 2
        row, col = places.long() // inp, places.long() % inp
        return row % high * 2, col % wide * 2, 1 - 2 * (col >= wide).int(), 1 - 2 * (row >= high).int()

    def change(self, out: int, inp: int, c: Tensor, places: Tensor) -> Tensor:
        row, col, down, across = self.blocks(out, inp, places)
        change = c.new_zeros(out + out % 2, inp + inp % 2)
        for r, c_row in ((row, c), (row + 1, c * down)):
            for k, value in ((col, c_row), (col + 1, c_row * across)):
                change = change.index_put((r, k), value, accumulate=True)
        return self.scale / 2 * change[:out, :inp]

    def weight(self, w: Tensor, c: Tensor, places: Tensor) -> Tensor:
        return w + self.change(w.shape[0], w.shape[1], c, places)

    def output(self, x: Tensor, y: Tensor, base: Base, c: Tensor, places: Tensor) -> Tensor:
        out, inp = y.shape[-1], x.shape[-1]
        if dense(x, y, c):
            return y + linear(x.to(c.dtype), self.change(out, inp, c, places)).to(y.dtype)
        row, col, down, across = self.blocks(out, inp, places)
        x = pad(x.to(c.dtype), (0, inp % 2))
        found = (x.index_select(-1, col) + x.index_select(-1, col + 1) * across) * c
        change = found.new_zeros(*y.shape[:-1], out + out % 2).index_add(-1, row, found)
        change = change.index_add(-1, row + 1, found * down)[..., :out]
        return y + (self.scale / 2 * change).to(y.dtype)


@method(
    "waveft",
    WaveFT,
    paper="Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets, arXiv 2505.12532",
    formula="n per site",
    depthwise=False,
    unfit=within("n_frequency"),
    lr=2e-4,
    size=("n_frequency",),
)
def plan(sites: Sequence[Site], config: WaveFT) -> Plan:
    """W' = W + scaling * W^-1(C), C zero but for n entries c at random places, c zero at the start.

    Shapes: c (n,), places (n,). Linear in: c. Source: arXiv 2505.12532, as PEFT 0.21.2 computes it with
    wavelet_family="db1"; its other wavelets are read through PEFT. Differs: the same n for every site.
    Raises: CommonweightError when a weight has fewer than n numbers.
    """
    return placed("waveft", sites, config.n_frequency, config.random_loc_seed, Haar(config.scaling))
