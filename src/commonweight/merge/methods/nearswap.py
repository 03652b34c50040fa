"""NearSwap: the other model where it is near, the base where it is far."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..call.declare import method
from ..registry import Positive


@method(
    "nearswap",
    paper="alchemonaut/QuartetAnemoi-70B-t0.0001 (model card, no paper); mergekit",
    equation="theta = theta_0 + w (theta_1 - theta_0), w = min(1, t / |theta_1 - theta_0|)",
    models=(1, 1),
    same=("mergekit",),
)
def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: Positive) -> Tensor:
    """Takes the other model's number where it differs by at most t, else goes t towards it (by 1e-6 if t is less)."""
    w = (t / (base - tensors[0]).abs().clamp(min=1e-6)).clamp(0, 1)
    return w * tensors[0] + (1 - w) * base
