"""What the base and its tenants may say, once a vocabulary has grown."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .apart import Unfit
from .route import Route
from .tenant import Tenant


class Limit:
    """own: entries that are the base's own, None for all of them. size: entries that are there."""

    def __init__(self, size: int | None):
        self.own: int | None = None
        self.size = size

    def of(self, tenant: Tenant | None) -> int | None:
        """None for all."""
        n = self.own if tenant is None else tenant.vocabulary
        return None if n is None or self.size is None or n >= self.size else n

    def __call__(self, route: Route | None, y: Tensor) -> Tensor:
        """Scores (..., V), with -inf for the entries that a reader does not know. Cost: nothing before it has grown."""
        if route is None or route.single is not None:
            n = self.of(None if route is None else route.single)
            return y if n is None else nn.functional.pad(y[..., :n], (0, y.shape[-1] - n), value=float("-inf"))
        limits = [(self.of(t), places) for t, places in route.groups]
        if all(n is None for n, _ in limits):
            return y
        if (folded := route.fold(y)) is None:
            raise Unfit(f"scores of shape {tuple(y.shape)} in which the rows of the batch cannot be found")
        most = torch.full((route.length,), y.shape[-1], device=y.device)
        for n, places in limits:
            if n is not None:
                most[places] = n
        beyond = torch.arange(y.shape[-1], device=y.device) >= most.view(-1, *(1 for _ in folded[0].shape[1:]))
        return folded[0].masked_fill(beyond, float("-inf")).reshape(y.shape)
