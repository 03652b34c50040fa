"""A feed-forward module as a mixture of experts of its own kind."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing import Any


class Mixture:
    """y = sum of p_e f_e(x) over the k likeliest experts of each token, p = softmax(router x), router (E, d).

    In training an expert takes int(T capacity k / E) of T tokens, the first that chose it; otherwise all of them."""

    router: nn.Parameter
    weight: float
    k: int
    capacity: float
    training: bool
    experts: nn.ModuleList

    def grow(self: Any, experts: int, k: int, capacity: float, weight: float = 0.0) -> None:
        """Copies of the module as it was, which then has no layers of its own."""
        plain = deepcopy(self)
        plain.__class__ = type(self).__mro__[2]
        for name in list(self._modules):
            delattr(self, name)
        self.experts = nn.ModuleList(deepcopy(plain) for _ in range(experts))
        self.k, self.capacity, self.weight = k, capacity, weight

    def information(self, p: Tensor) -> Tensor:
        """-(H(e) - H(e | x)) times its weight, of probabilities (T, E)."""
        mean = p.mean(0)
        return self.weight * (torch.special.xlogy(mean, mean).sum() - torch.special.xlogy(p, p).sum(-1).mean())

    def beside(self) -> Tensor | None:
        return self.__dict__.pop("told", None)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        every = F.linear(flat, self.router).float().softmax(-1)
        self.__dict__["told"] = self.information(every) if self.training and self.weight else None
        p, chosen = every.topk(self.k, -1)
        room = int(len(flat) * self.capacity * self.k / len(self.experts)) if self.training else len(flat)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            token, place = (chosen == e).nonzero(as_tuple=True)
            token, place = token[:room], place[:room]
            out = out.index_add(0, token, expert(flat[token]) * p[token, place, None].to(flat.dtype))
        return out.view_as(x)
