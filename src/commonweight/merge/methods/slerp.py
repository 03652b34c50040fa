"""SLERP: along the arc between two models' directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine, gram
from ..registry import Share


def arc(t: float, norms: tuple[float, float], dot: float, near: float) -> tuple[float, float]:
    """Coefficients of spherical interpolation; linear where the directions are (anti)parallel within `near`."""
    cosine = max(-1.0, min(1.0, dot / ((norms[0] or 1.0) * (norms[1] or 1.0))))
    if abs(cosine) > near:
        return 1 - t, t
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


@method(
    "slerp",
    paper="Animating rotation with quaternion curves, SIGGRAPH 1985 (Shoemake)",
    equation="theta = (sin((1-t) w) theta_a + sin(t w) theta_b) / sin w, w the angle between theta_a and theta_b",
    base="none",
    models=(2, 2),
    survey=gram(),
    same=("mergekit",),
)
def slerp(tensors: Sequence[Tensor], base: Tensor | None, *, seen: Any, t: Share = 0.5) -> Tensor:
    """Spherical interpolation of two models, tensor by tensor; t=0 is the first model. One angle a tensor.

    Nearly parallel directions (cosine above 0.9995) are interpolated linearly. Needs: the inner products of each
    tensor.
    """
    g = seen["gram"]
    norms = (g[0, 0].sqrt().item(), g[1, 1].sqrt().item())
    return combine(tensors, arc(t, norms, g[0, 1].item(), 0.9995))
