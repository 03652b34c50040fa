"""C3A: the change is made of circulant blocks, computed by short Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fft import irfft, rfft

from ...address import WHOLE
from ...core import ZEROS, Base, CommonweightError, Plan, Pool, Read, Site, Use, config, option, serial
from ..low_rank.lora import pick, wrong_pairs
from ..registry import method


@config
class C3A:
    block_size: int | None = option(None, "side b of the blocks; none: the largest that divides both widths", ge=1)
    block_sizes: tuple[tuple[str, int], ...] = option(
        (), "(pattern, b) pairs: other blocks for some sites, first match wins", globs=True
    )

    def check(self) -> str | None:
        return wrong_pairs(block_sizes=self.block_sizes)


def side(config: C3A, site: Site) -> int:
    """What the options say of a site's blocks, else the largest that fits."""
    return int(pick(config.block_sizes, site.name, config.block_size or math.gcd(site.out, site.inp)))


def unfit(config: C3A, site: Site) -> str:
    """The side that does not divide both widths, or ""."""
    b = side(config, site)
    return f"block_size={b}" if math.gcd(site.out, site.inp) % b else ""


@serial
@dataclass(frozen=True)
class Circulant:
    """w' = w + C / d_in, block (m, n) of C circulant: entry (i, j) is k[m, n, (j - i) mod b].

    Shapes: k (d_out / b, d_in / b, b). Linear in: k. Cost of `output`: T (d_in log b + d_out log b + d_in d_out / b).
    """

    precise: ClassVar[bool] = True

    def weight(self, w: Tensor, k: Tensor) -> Tensor:
        i = torch.arange(k.shape[-1], device=k.device)
        blocks = k[..., (i - i[:, None]) % k.shape[-1]]  # (m, n, b, b)
        return w + blocks.transpose(1, 2).reshape(w.shape) / w.shape[1]

    def output(self, x: Tensor, y: Tensor, base: Base, k: Tensor) -> Tensor:
        parts = rfft(x.to(k.dtype).unflatten(-1, k.shape[-2:]))
        out = irfft(torch.einsum("...nf,mnf->...mf", parts, rfft(k).conj()), k.shape[-1])
        return y + (out.flatten(-2) / x.shape[-1]).to(y.dtype)

    def grouped(self, x: Tensor, y: Tensor, base: Base, k: Tensor) -> Tensor:
        """`output` of g readers at once: x (g, T, d_in), k (g, m, n, b)."""
        parts = rfft(x.to(k.dtype).unflatten(-1, k.shape[-2:]))
        out = irfft(torch.einsum("gtnf,gmnf->gtmf", parts, rfft(k).conj()), k.shape[-1])
        return y + (out.flatten(-2) / x.shape[-1]).to(y.dtype)


@method(
    "c3a",
    C3A,
    paper="Parameter-Efficient Fine-Tuning via Circular Convolution, arXiv 2407.19342",
    formula="sum over sites of d_in d_out / b",
    unfit=unfit,
    lr=3e-1,
    size=("-block_size",),
)
def plan(sites: Sequence[Site], config: C3A) -> Plan:
    """y = W x + (1 / d_in) sum over input blocks of circular convolutions with trained kernels, zero at the start.

    Shapes: k (d_out / b, d_in / b, b). Linear in: k. Source: arXiv 2407.19342; the factor 1 / d_in as PEFT 0.21.2.
    Differs: kernels start at zero, as PEFT's init_weights=True, where its default draws them (xavier uniform).
    Raises: CommonweightError when b does not divide a width.
    """
    pools, uses = {}, []
    for s in sites:
        b = side(config, s)
        if wrong := unfit(config, s):
            most = math.gcd(s.out, s.inp)
            fit = [n for n in range(1, most + 1) if most % n == 0]
            raise CommonweightError(
                f"c3a: {s.name}: {wrong} does not divide both widths {s.inp} and {s.out}; choose from "
                f"{fit[-8:]}, or exclude the site"
            )
        pools[f"{s.name}.k"] = Pool((s.out // b, s.inp // b, b), ZEROS)
        uses.append(Use(s.name, Circulant(), {"k": Read(WHOLE, (f"{s.name}.k",))}))
    return Plan(pools, tuple(uses))
