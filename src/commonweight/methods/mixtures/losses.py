"""Losses of routers: of logits (n, E) of a tenant's own tokens. Padding counts for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ...bind.mixture import tsallis
from ...core.names import by_layer
from ..said import RouterLoss, Said

Gates = Callable[[Tensor], Tensor]


def mean(t: Tensor, real: Tensor) -> Tensor:
    """Of t (n, ...) over its tokens."""
    real = real.to(t.dtype)
    return (t * real.view(-1, *[1] * (t.dim() - 1))).sum(0) / real.sum().clamp(min=1)


def joined(said: Iterable[Said]) -> Said:
    """What several routers with as many experts said, as of one."""
    return Said(*map(torch.cat, zip(*said)))


def largest(k: int) -> Gates:
    """1 for the k largest, where there are so many."""
    return lambda z: torch.zeros_like(z).scatter(-1, z.topk(min(k, z.shape[-1]), -1).indices, 1.0)


def balance(said: Said, gates: Gates) -> Tensor:
    """E sum_i f_i P_i: f the share of all choices that fall on expert i, P its mean probability. 1 where all experts
    have as much to do. Source: Switch Transformers, arXiv 2101.03961, eq. (4) to (6), for the k largest."""
    chosen = mean((gates(said.logits.detach()) != 0).to(said.logits.dtype), said.real)
    share = mean(said.logits.softmax(-1), said.real)
    return said.logits.shape[-1] * (chosen / chosen.sum().clamp(min=1e-9) * share).sum()


def size(said: Said) -> Tensor:
    """The z-loss, mean of logsumexp(logits)^2. Source: ST-MoE, arXiv 2202.08906, eq. (5)."""
    return mean(said.logits.logsumexp(-1).square(), said.real)


def entropy(said: Said, q: float) -> Tensor:
    """Mean normalised Tsallis entropy of the probabilities."""
    return mean(tsallis(said.logits.softmax(-1), q), said.real)


def weighed(balanced: float, small: float, gates: Gates, by: str) -> RouterLoss | None:
    """balanced * balance + small * size, None where both are 0. by: "layer", summed over the layers, the routers of one
    together; "site", summed over the sites."""
    if not balanced and not small:
        return None

    def loss(said: Mapping[str, Said]) -> Tensor:
        groups = by_layer([*said]) if by == "layer" else [[n] for n in said]
        parts = [joined(said[n] for n in names) for names in groups]
        out = torch.zeros((), device=parts[0].logits.device)
        for part in parts:
            if balanced:
                out = out + balanced * balance(part, gates)
            if small:
                out = out + small * size(part)
        return out

    return loss
