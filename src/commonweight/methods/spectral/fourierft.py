"""FourierFT: a few frequencies of the change are trained, at places that the seed draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...core import ZEROS, Base, CommonweightError, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..registry import method
from ..widths import within


@config
class FourierFT:
    n_frequency: int = option(1000, "frequencies n of every site", ge=1)
    scaling: float = option(150.0, "factor on the inverse transform", gt=0)
    random_loc_seed: int = option(777, "seed of the places; PEFT's own number", ge=0)


@serial
@dataclass(frozen=True)
class DrawnPlaces:
    """Distinct places in range(n), drawn as PEFT draws them: by torch's generator, whatever the tenant's seed is."""

    derived: ClassVar[bool] = True
    checked: ClassVar[bool] = False

    n: int
    seed: int

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed))[: shape[0]]


@serial
@dataclass(frozen=True)
class Spectrum:
    """w' = w + scale * Re F^-1(C), C (d_out, d_in) zero but for the numbers c at the given places.

    Shapes: c (n,), places (n,) into the flat C. Linear in: c. Cost of `output`: T (d_in log d_in +
    d_out log d_out + n) for few tokens: x is transformed, n products are summed by output frequency, and transformed
    back; for many (`dense`) that of the change, and of a layer.
    """

    scale: float
    precise: ClassVar[bool] = True

    def change(self, out: int, inp: int, c: Tensor, places: Tensor) -> Tensor:
        """C is real, so that Re F^-1(C) is Re F(C) / (d_out d_in), of which one half mirrors the other."""
        C = c.new_zeros(out * inp).index_add(0, places.long(), c).view(out, inp)
        half = torch.fft.rfft2(C).real
        mirrored = half[:, 1 : (inp + 1) // 2].flip(0, 1).roll(1, 0)
        return torch.cat([half, mirrored], 1) * (self.scale / C.numel())

    def weight(self, w: Tensor, c: Tensor, places: Tensor) -> Tensor:
        return w + self.change(w.shape[0], w.shape[1], c, places)

    def output(self, x: Tensor, y: Tensor, base: Base, c: Tensor, places: Tensor) -> Tensor:
        if dense(x, y, c):
            return y + F.linear(x.to(c.dtype), self.change(y.shape[-1], x.shape[-1], c, places)).to(y.dtype)
        row, col = places.long() // x.shape[-1], places.long() % x.shape[-1]
        found = torch.fft.ifft(x.to(c.dtype)).index_select(-1, col) * c
        summed = found.new_zeros(*y.shape).index_add(-1, row, found)
        return y + (self.scale * torch.fft.ifft(summed).real).to(y.dtype)


def dense(x: Tensor, y: Tensor, c: Tensor) -> bool:
    """Whether a product for each token and trained number would take more than the whole change: T n > d_out d_in."""
    return x.shape[:-1].numel() * c.shape[-1] > y.shape[-1] * x.shape[-1]


def placed(who: str, sites: Sequence[Site], n: int, seed: int, bind: Any) -> Plan:
    """n trained numbers of every site, zero at the start, at places that are drawn once for all sites of one shape.

    bind: what is made of slots c (n,) and places (n,). Raises: CommonweightError, under the method's name, when a
    weight has fewer than n numbers.
    """
    pools, uses = {}, []
    for s in sites:
        if n > s.out * s.inp:
            raise CommonweightError(
                f"{who}: {s.name}: n_frequency={n} is more than the {s.out * s.inp} numbers of a weight "
                f"({s.out}, {s.inp}); lower it, or exclude the site"
            )
        pools[f"{s.name}.c"] = Pool((n,), ZEROS)
        at = f"{who}.{s.out}x{s.inp}"
        pools[at] = Pool((n,), DrawnPlaces(s.out * s.inp, seed), train=False, save=False, dtype="int32")
        reads = {"c": Read(WHOLE, (f"{s.name}.c",)), "places": Read(WHOLE, (at,))}
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))


@method(
    "fourierft",
    FourierFT,
    paper="Parameter-Efficient Fine-Tuning with Discrete Fourier Transform, arXiv 2405.03003",
    formula="n per site",
    depthwise=False,
    unfit=within("n_frequency"),
    lr=3e-2,
    size=("n_frequency",),
)
def plan(sites: Sequence[Site], config: FourierFT) -> Plan:
    """W' = W + scaling * Re F^-1(C), C zero but for n entries c at random places, c zero at the start.

    Shapes: c (n,), places (n,). Linear in: c. Source: arXiv 2405.03003, section 3; scale as PEFT 0.21.2.
    Differs: c starts at zero, as PEFT's init_weights=True, where the paper draws N(0, 1); places are drawn
    once for all sites of one shape, as PEFT draws them.
    Raises: CommonweightError when a weight has fewer than n numbers.
    """
    return placed("fourierft", sites, config.n_frequency, config.random_loc_seed, Spectrum(config.scaling))
