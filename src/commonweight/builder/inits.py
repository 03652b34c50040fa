"""First values of shared pools: functions of several weights of the original, by name as ``3.self_attn.q_proj.weight``.

What they are given as `base` is the original's weights: `Originals`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..address import tiled
from ..core import Rng, kaiming, serial
from ..core.spectrum import svd


class Weights(Protocol):
    """What inits here ask of an original; names have a depth in front."""

    def stored(self, name: str) -> Tensor: ...
    def once(self, key: Hashable, make: Callable[[], Any]) -> Any: ...


class Originals:
    """The weights of a list of blocks by depth and name, and a memory of what was computed of them."""

    def __init__(self, blocks: nn.Module, model: nn.Module | None = None):
        self.blocks, self.model, self._made = blocks, model, {}

    def stored(self, name: str) -> Tensor:
        """As the module holds it, in its own layout and dtype. A name that begins with a dot is one of the model."""
        if name.startswith(".") and self.model is not None:
            return self.model.get_parameter(name[1:]).detach()
        return self.blocks.get_parameter(name).detach()

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


@serial
@dataclass(frozen=True)
class Mean:
    """The mean of weights, of one alone the weight itself; in their dtype, computed in float32."""

    derived = True
    of: tuple[str, ...]

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        first = base.stored(self.of[0])
        if len(self.of) == 1:
            return first.clone()
        return (sum(base.stored(n).float() for n in self.of) / len(self.of)).to(first.dtype)  # type: ignore[union-attr]


@serial
@dataclass(frozen=True)
class Eye:
    """The identity."""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        return torch.eye(shape[0])


@serial
@dataclass(frozen=True)
class Residual:
    """A factor of the best approximation of rank r to W - W', W' a mean: part "A" is V_r^T (r, in), "B" is U_r S_r.

    Where W = W' the directions of an SVD would be noise: A is drawn as LoRA's and B is zero. Cost: one thin SVD for
    both parts. Source: arXiv 2410.20672, section 3.2 and appendix C. Signs: the largest entry of each row of A is > 0.
    """

    derived = True
    of: str
    minus: tuple[str, ...]
    part: str
    transposed: bool = False

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        u, s, v = base.once((self.of, self.minus, self.transposed), lambda: self._factors(base))
        r = shape[0] if self.part == "A" else shape[1]
        if float(s[0]) == 0:
            return kaiming(shape[1])(shape, rng, None) if self.part == "A" else torch.zeros(shape)  # type: ignore
        return v[:r].contiguous() if self.part == "A" else u[:, :r] * s[:r]

    def _factors(self, base: Weights) -> tuple[Tensor, Tensor, Tensor]:
        w = base.stored(self.of).float() - Mean(self.minus)((), Rng(0, ""), base).float()
        return svd(w.mT if self.transposed else w)


@serial
@dataclass(frozen=True)
class Templates:
    """Of the blocks of several matrices, each cut into grid x grid: the templates whose mixtures come nearest to them
    (part "templates"; the left singular vectors of all blocks, as long as their values), or the coefficients of one
    matrix `one` (part "coefficients"). As many templates as blocks give them back. Cost: one SVD of all blocks.
    """

    derived = True
    of: tuple[str, ...]
    grid: int
    part: str
    one: str = ""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        mixed, templates = base.once((self.of, self.grid), lambda: self._factors(base))
        if self.part == "templates":
            return templates[: shape[0]].reshape(shape).contiguous()
        n = self.grid**2
        at = self.of.index(self.one) * n
        return mixed[at : at + n, : shape[1]].contiguous()

    def _factors(self, base: Weights) -> tuple[Tensor, Tensor]:
        """(coefficients (all blocks, t), templates (t, block))."""
        blocks = torch.cat([tiled(base.stored(n).float(), self.grid) for n in self.of]).flatten(1)
        u, s, v = torch.linalg.svd(blocks, full_matrices=False)
        size = len(blocks) ** 0.5  # templates as large as blocks are on average, coefficients around 1
        return u * size, v * (s / size)[:, None]
