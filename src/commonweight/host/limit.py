"""What the base and its tenants may say, once a vocabulary has grown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .apart import Unfit
from .current import Current
from .route import Route
from .tenant import Tenant

_CAPS = "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"  # of Gemma, RecurrentGemma, xLSTM


class Limit:
    """own: entries that are the base's own, None for all of them. size: entries that are there."""

    def __init__(self, size: int | None):
        self.own: int | None = None
        self.size = size
        self.held = ""  # who is within a pass at any time, so that the model must stay as it is

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


class Ends:
    """After a whole model that bends its scores (Gemma's soft caps make a number of -inf): -inf once more."""

    def __init__(self, limit: Limit, current: Current):
        self.limit, self.current = limit, current

    def __call__(self, module: nn.Module, args: Any, out: Any) -> None:
        scores = getattr(out, "logits", None)
        if isinstance(scores, Tensor) and scores.shape[-1] == self.limit.size:
            out.logits = self.limit(self.current.route, scores)


def bends(model: nn.Module) -> bool:
    """Whether a model does more to its scores than scale them."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return any(getattr(text, n, None) is not None for n in _CAPS)
