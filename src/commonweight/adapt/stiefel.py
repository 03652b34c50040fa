"""Steps on orthogonal matrices, through geoopt: for pools that name ``stiefel`` as what they are trained by."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

from ..core import CommonweightError


def stiefel(groups: list[dict[str, Any]]) -> Optimizer:
    """Adam on the Stiefel manifold. Shapes: pools (..., n, p), n >= p, whose columns are orthonormal and stay so.

    There is no weight decay: it would point away from the manifold alone, and vanish. Cost: for each matrix a step
    solves two systems of n and takes one SVD.
    Source: Riemannian Adam (arXiv 1810.00760) by Cayley's retraction, geoopt's RiemannianAdam; after each step a matrix
    is set to its polar factor, without which the roundings of many steps add up.
    Raises: CommonweightError where geoopt is not installed.
    """
    return _class()(groups)


@cache
def _class() -> Any:
    try:
        with warnings.catch_warnings():  # it compiles functions by torch.jit, which torch calls out of date
            warnings.simplefilter("ignore", DeprecationWarning)
            from geoopt import CanonicalStiefel
            from geoopt.optim import RiemannianAdam
    except ImportError as e:
        raise CommonweightError("orthogonal pools are trained by geoopt: pip install commonweight[manifold]") from e

    class OnStiefel(RiemannianAdam):
        # theirs asks a parameter for its own first
        _default_manifold = CanonicalStiefel()  # pyrefly: ignore[bad-override]

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for p in (p for g in self.param_groups for p in g["params"] if p.grad is not None):
                p.copy_(self._default_manifold.projx(p))
            return loss

    return OnStiefel
