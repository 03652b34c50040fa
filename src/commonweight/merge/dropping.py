"""Random dropping of task vectors' entries, by chances that depend on nothing but (seed, tensor, model)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import parts
from .registry import At, Survey

Chances = Callable[[Tensor, Mapping[str, Any]], Tensor]  # (T, *shape) task vectors -> chance of being kept


def keep(tau: Tensor, chances: Tensor, at: At, seed: int) -> Tensor:
    """float32 0 or 1 (T, *shape)."""
    return torch.stack([(parts.uniform(seed, at, t, x) < p).float() for t, (x, p) in enumerate(zip(tau, chances))])


def norms(chances: Chances) -> Survey:
    """mergekit scales what is left to the task vector's own L1 norm: both norms of every tensor."""

    def look(tensors: Sequence[Tensor], base: Tensor | None, *, at: At, **config: Any) -> dict[str, Tensor]:
        tau = parts.deltas(tensors, base)
        left = tau * keep(tau, chances(tau, config), at, config["seed"])
        return {"l1": torch.stack([x.abs().flatten(1).double().sum(1) for x in (tau, left)])}

    def scope(config: Mapping[str, Any]) -> Any:
        return "tensor" if config["compat"] == "mergekit" and config["rescale"] else None

    return parts.sums(look, scope)


def drop(tau: Tensor, chances: Chances, at: At, seen: Any, config: Mapping[str, Any]) -> Tensor:
    """Dropped and rescaled task vectors: by 1 / chance, or in mergekit's way."""
    p = chances(tau, config)
    left = tau * keep(tau, p, at, config["seed"])
    if not config["rescale"]:
        return left
    if config["compat"] != "mergekit":
        return left / p
    before, after = seen["l1"]
    factor = torch.where((before < 1e-7) | (after < 1e-7), torch.ones_like(before), before / after.clamp(min=1e-30))
    return left * parts.column([f if d < 1 else 1.0 for f, d in zip(factor.tolist(), config["density"])], left)
