"""Low-rank experts that are merged into one for each row, before the product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Base, CommonweightError, serial
from .mixture import GATED, tell


def top(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(softmax over the k largest of z (..., E), which they are), (..., k) each."""
    best, at = z.topk(k, -1)
    return best.softmax(-1), at


def real_tokens(x: Tensor, base: Base) -> Tensor:
    """(n, T, 1), float32, of x (n, T, d): 1 where a token is no padding (base.there).

    Raises: CommonweightError where nobody says which tokens are padding."""
    if (there := getattr(base, "there", None)) is None:
        raise CommonweightError(
            f"{getattr(base, 'name', 'a site')}: nothing says here which tokens of a row are padding, for the "
            "row's mean; route the tenant per row, or make it without this site"
        )
    return there.reshape(len(x), -1, 1).float()


def row_mean(x: Tensor, base: Base) -> Tensor:
    """(n, d), float32, of x (n, T, d): the mean over a row's tokens that are no padding. Raises: as `real_tokens`."""
    real = real_tokens(x, base)
    return (x.float() * real).sum(1) / real.sum(1).clamp(min=1)


@serial
@dataclass(frozen=True)
class OneExpert:
    """y' = y + scale (sum_e g_e B_e A_e) x, with one g for all tokens of a row.

    m: mean of x over the row's tokens that are no padding; z = router m, in training, where there is `noise`, plus
    normal numbers times softplus(noise m) + 0.01; g: softmax over the k largest of z, 0 elsewhere.
    The chosen A_e stand one below the other, their g_e B_e side by side: a row has one matrix of rank k r.
    Shapes: A (E r, d_in), B (d_out, E r), router and noise (E, d_in). Linear in: A and B, each alone. No form of a
    weight: it would be another one for each row. base.there: which tokens are no padding, bool (rows, T).
    Cost: T k r (d_in + d_out) products, and a copy of k experts for each row. Said to a loss, row by row: z; where it
    is noisy z without the noise, z, and the noise's size, side by side.
    Raises: CommonweightError where nobody says which tokens are padding.
    """

    scale: float
    k: int
    tokenwise: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    precise: ClassVar[bool] = True  # gates are worked out in float32
    unmerged: ClassVar[str] = GATED.replace("token", "row")

    def output(
        self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, router: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])
        g, at = top(self._scores(rows, base, router, noise), self.k)
        a, b = _experts(A, B, len(router))
        return y + self._product(rows, g, a[at], b[at]).reshape(y.shape)

    def grouped(
        self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, router: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """`output` of n readers of a row each: x (n, T, d_in), A (n, E r, d_in), ..."""
        g, at = top(self._scores(x, base, router, noise), self.k)
        (a, b), row = _experts(A, B, router.shape[1]), torch.arange(len(x), device=x.device)[:, None]
        return y + self._product(x, g, a[row, at], b[row, at])

    def _product(self, x: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """x (n, T, d_in), g (n, k), a (n, k, r, d_in), b (n, k, d_out, r) -> (n, T, d_out)."""
        one = (b * (self.scale * g)[..., None, None]).movedim(1, 2).flatten(2)
        return torch.bmm(torch.bmm(x, a.flatten(1, 2).to(x.dtype).mT), one.to(x.dtype).mT)

    def _scores(self, x: Tensor, base: Base, router: Tensor, noise: Tensor | None) -> Tensor:
        """(n, E) of x (n, T, d_in)."""
        mean = row_mean(x, base)
        clean = (router @ mean[..., None])[..., 0]
        if noise is None or not base.training:
            tell(base, clean)
            return clean
        size = F.softplus((noise @ mean[..., None])[..., 0]) + 1e-2
        z = clean + torch.randn_like(clean) * size
        tell(base, torch.cat([clean, z, size], -1))
        return z


def _experts(A: Tensor, B: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(..., n, r, d_in) and (..., n, d_out, r)."""
    return A.unflatten(-2, (n, -1)), B.unflatten(-1, (n, -1)).movedim(-2, -3)
