"""What a layer of PEFT's does to its weight: its answers to unit vectors, in float64 where it can."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ....core import CommonweightError, Site
from ....formats.adapter import Frozen
from ....formats.changes import Change

_PIECE = 1024  # unit vectors at a time
_LINEAR = 1e-4  # relative error of a product with what was measured, beyond which a layer has no weight


def measure(layer: nn.Module, site: Site, base: Frozen, **kwargs: Any) -> Change:
    """The difference to the base's weight and bias. Cost: d_in products with the layer, and its weight in float64.

    Raises: CommonweightError for a layer whose answer is not linear in its input.
    """
    why: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        try:
            one = copy.deepcopy(layer).to(dtype)
            w, b, bent = _answers(one, site.inp, dtype, kwargs)
        except (RuntimeError, TypeError, NotImplementedError) as e:  # kernels that are not there in float64
            why = why or e
            continue
        if not bent < _LINEAR:
            raise CommonweightError(
                f"{site.name}: the adapter's answer is not linear in its input (off by {bent:.1g}), so it is no change "
                "of a weight; serve it with PEFT"
            )
        delta = (w - base.weight(site.name).cpu().to(dtype)).float()
        old = base.bias(site.name).cpu().to(dtype) if site.bias else torch.zeros(site.out, dtype=dtype)
        gained = (b - old).float()
        return Change(delta=delta if delta.any() else None, bias=gained if gained.any() else None)
    raise CommonweightError(f"{site.name}: PEFT cannot compute with this adapter here: {why}") from why


def _answers(layer: nn.Module, inp: int, dtype: torch.dtype, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, float]:
    """(W', b', relative error of a product with them)."""

    def y(x: Tensor) -> Tensor:
        with torch.no_grad():
            return layer(x[None], **kwargs)[0].to(dtype)  # one text, as Poly wants it

    b = y(torch.zeros(1, inp, dtype=dtype))[0]
    eye = torch.eye(inp, dtype=dtype)
    w = torch.cat([y(piece) - b for piece in eye.split(_PIECE)]).T
    x = torch.linspace(-2, 3, 2 * inp, dtype=dtype).view(2, inp).cos()
    want = x @ w.T + b
    return w, b, ((y(x) - want).norm() / want.norm().clamp_min(1e-12)).item()
