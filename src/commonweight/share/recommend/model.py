"""A small recommender on tables of embeddings: how likely a user takes an item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Recommender(nn.Module):
    """{feature: values (*s)} -> logits (*s): a network of two layers on all embeddings, and the product of two of them.

    tables: what gives {feature: (*s, width)} and has `widths`, as `Unified` and `Clustered`. pair: two features of one
    width whose inner product is added (user and item), as in matrix factorisation. hidden: 0 leaves the product alone.
    """

    def __init__(self, tables: nn.Module, hidden: int = 64, pair: tuple[str, str] | None = None):
        super().__init__()
        self.tables, self.pair = tables, pair
        widths: Any = tables.widths
        width: int = sum(widths.values())
        self.bias = nn.Parameter(torch.zeros(()))
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)) if hidden else None

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        found: dict[str, Tensor] = self.tables(values)
        out = self.bias
        if self.net is not None:
            out = out + self.net(torch.cat(list(found.values()), -1))[..., 0]
        if self.pair is not None:
            out = out + (found[self.pair[0]] * found[self.pair[1]]).sum(-1)
        return out


def train(
    model: nn.Module,
    features: Any,
    pairs: Tensor,
    items: int,
    *,
    epochs: int = 10,
    negatives: int = 4,
    batch: int = 1024,
    lr: float = 5e-3,
    decay: float = 1e-5,
    seed: int = 0,
) -> list[float]:
    """Adam on the cross entropy of pairs that were seen (n, 2) and of as many times `negatives` drawn items.

    features: (users, items) -> {feature: values}. Returns the mean loss of each epoch. The same seed draws the same.
    """
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=decay)
    out = []
    for _ in range(epochs):
        losses = []
        for some in torch.randperm(len(pairs), generator=g).split(batch):
            users, taken = pairs[some].unbind(1)
            drawn = torch.randint(items, (negatives, len(some)), generator=g)
            logits = model(features(users.expand(1 + negatives, -1), torch.cat([taken[None], drawn])))
            wanted = torch.zeros_like(logits)
            wanted[0] = 1
            loss = F.binary_cross_entropy_with_logits(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        out.append(float(torch.stack(losses).mean()))
    return out


@torch.no_grad()
def auc(model: nn.Module, features: Any, pairs: Tensor, others: Tensor) -> float:
    """How often a pair (n, 2) has a higher logit than the same user with one of `others` (n, m); a tie counts half."""
    users, taken = pairs.unbind(1)
    best = model(features(users, taken))[:, None]
    rest = model(features(users[:, None].expand_as(others), others))
    return float(((best > rest).float() + 0.5 * (best == rest).float()).mean())
