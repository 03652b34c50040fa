"""What a layer of PEFT's does to its weight: its answers to unit vectors, in float64 where it can."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core import CommonweightError, Site
from ....formats.adapter import Frozen
from ....formats.changes import Change

_PIECE = 1024  # unit vectors at a time
_LINEAR = 1e-4  # relative error of a product with what was measured, beyond which a layer has no weight


def measure(layer: nn.Module, site: Site, base: Frozen, **kwargs: Any) -> Change:
    """The difference to the base's weight and bias. Cost: d_in products with the layer, and its weight in float64.

    Raises: CommonweightError for a layer whose answer is not that of one weight.
    """
    why: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        try:
            one = copy.deepcopy(layer).to(dtype)
            if site.kind == "embedding":
                w, b, bent = _entries(one, site, dtype), torch.zeros(site.out, dtype=dtype), 0.0
            else:
                w, b, bent = _answers(one, site.inp, dtype, base.kernel(site.name), kwargs)
        except (RuntimeError, TypeError) as e:  # kernels that are not there in float64
            why = why or e
            continue
        if not bent < _LINEAR:
            raise CommonweightError(
                f"{site.name}: the adapter's answer is not that of one weight (off by {bent:.1g}), so it is no change "
                "of weights; serve it with PEFT"
            )
        delta = (w - base.weight(site.name).cpu().to(dtype)).float()
        old = base.bias(site.name).cpu().to(dtype) if site.bias else torch.zeros(site.out, dtype=dtype)
        gained = (b - old).float()
        return Change(delta=delta if delta.any() else None, bias=gained if gained.any() else None)
    raise CommonweightError(f"{site.name}: PEFT cannot compute with this adapter here: {why}") from why


def _entries(table: nn.Module, site: Site, dtype: torch.dtype) -> Tensor:
    """Of a table of embeddings, (width, vocabulary)."""
    with torch.no_grad():
        return torch.cat([table(ids[None])[0].to(dtype) for ids in torch.arange(site.inp).split(_PIECE)]).T


def _answers(
    layer: nn.Module, inp: int, dtype: torch.dtype, kernel: tuple[int, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, float]:
    """(W', b', relative error of a product with them). kernel: of a convolution, whose input is one patch."""

    def y(x: Tensor) -> Tensor:
        with torch.no_grad():
            if kernel:
                return layer(x.view(len(x), -1, *kernel)).to(dtype).flatten(1)
            return layer(x[None], **kwargs)[0].to(dtype)  # one text, as Poly wants it

    b = y(torch.zeros(1, inp, dtype=dtype))[0]
    eye = torch.eye(inp, dtype=dtype)
    w = torch.cat([y(piece) - b for piece in eye.split(_PIECE)]).T
    x = torch.linspace(-2, 3, 2 * inp, dtype=dtype).view(2, inp).cos()
    bent = _off(y(x), x @ w.T + b)
    return w, b, max(bent, _bent(layer, w, b, kernel)) if kernel else bent


def _bent(layer: nn.Module, w: Tensor, b: Tensor, kernel: tuple[int, ...]) -> float:
    """How far a convolution over several places is from that of one place: some turn patches with one another."""
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    weight = w.view(len(w), -1, *kernel)
    shape = 1, weight.shape[1], *(2 * k + 1 for k in kernel)
    x = torch.linspace(-2, 3, math.prod(shape), dtype=w.dtype).mul(7).cos().view(shape)
    with torch.no_grad():
        return _off(layer(x).to(w.dtype), conv(x, weight, b))


def _off(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm().clamp_min(1e-12)).item()
