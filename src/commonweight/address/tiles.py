"""A matrix as a grid of blocks, each a mixture of the same templates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import serial


@serial
@dataclass(frozen=True)
class Tiles:
    """Block b of a grid g x g is sum_t c_bt T_t. Shapes: templates (t, o / g, i / g), coefficients (g g, t) -> (o, i).

    Linear in: templates, and the coefficients. Cost: t o i products. Blocks are counted row by row. Source:
    MixtureGrowth, arXiv 2311.04251, section 3.1.
    """

    grid: int = 2

    def __call__(self, templates: Tensor, coefficients: Tensor) -> Tensor:
        g, (t, o, i) = self.grid, templates.shape
        blocks = (coefficients @ templates.reshape(t, o * i)).view(g, g, o, i)
        return blocks.transpose(1, 2).reshape(g * o, g * i)


def tiled(w: Tensor, grid: int) -> Tensor:
    """The blocks of a matrix (o, i), row by row: (g g, o / g, i / g)."""
    o, i = w.shape[0] // grid, w.shape[1] // grid
    return w.reshape(grid, o, grid, i).transpose(1, 2).reshape(grid * grid, o, i)


def grown(first: Tensor, second: Tensor, noise: float = 1.0) -> Tensor:
    """Coefficients (4, t) of a layer that is grown of two: of the first top left, the second bottom right, (t,) each.

    The other two blocks get the direction that both lack, times `noise`: the last right singular vector. With noise 0
    the grown layer is the two side by side. Raises: ValueError where fewer than three templates leave none. Source:
    arXiv 2311.04251, section 3.2; the official code's coefs_growing="orthogonal", which does not look for that.
    """
    if len(first) < 3:
        raise ValueError(f"{len(first)} templates have no direction that two mixtures lack; wanted 3 or more")
    fresh = noise * torch.linalg.svd(torch.stack([first, second]), full_matrices=True).Vh[-1]
    return torch.stack([first, fresh, fresh, second])
