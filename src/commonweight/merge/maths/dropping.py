"""Random dropping of task vectors' entries, by chances that depend on nothing but (seed, tensor, model)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ..registry import At, Density, Range, Survey
from ..registry.steps import Drop
from . import parts


@dataclass(frozen=True)
class Dropping:
    """What DARE and DELLA are told. density: the share that is kept; rescale: what is left is made larger to match."""

    density: Density = 0.5
    scale: Annotated[float, Range()] = 1.0
    rescale: bool = True
    seed: int = 0


Chances = Callable[[Tensor, Mapping[str, Any]], Tensor]  # (T, *shape) task vectors -> chance of being kept


def keep(tau: Tensor, chances: Tensor, at: At, seed: int) -> Tensor:
    """bool (T, *shape): what stays."""
    out = []
    for t, (x, p) in enumerate(zip(tau, chances)):
        if not any(p.stride()):  # one chance for all
            out.append(parts.below(seed, at, t, x, p.flatten()[0].item()))
        else:
            out.append(parts.uniform(seed, at, t, x) < p)
    return torch.stack(out)


def _masked(tau: Tensor, mask: Tensor) -> Tensor:
    """tau itself, with zeros where the mask has none; NumPy multiplies by flags at three times the speed."""
    np.multiply(tau.numpy(), mask.numpy(), out=tau.numpy())
    return tau


def norms(chances: Chances) -> Survey:
    """mergekit scales what is left to the task vector's own L1 norm: both norms of every tensor."""

    def look(tensors: Sequence[Tensor], base: Tensor | None, *, at: At, **config: Any) -> dict[str, Tensor]:
        tau = parts.deltas(tensors, base)
        before = tau.abs().flatten(1).double().sum(1)
        left = _masked(tau, keep(tau, chances(tau, config), at, config["seed"]))
        return {"l1": torch.stack([before, left.abs().flatten(1).double().sum(1)])}

    def scope(config: Mapping[str, Any]) -> Any:
        return "tensor" if config["compat"] == "mergekit" and config["rescale"] else None

    return parts.sums(look, scope)


def drop(tau: Tensor, chances: Chances, at: At, seen: Any, config: Mapping[str, Any]) -> Tensor:
    """tau itself, dropped and rescaled: by 1 / chance, or in mergekit's way."""
    p = chances(tau, config)
    left = _masked(tau, keep(tau, p, at, config["seed"]))
    if not config["rescale"]:
        return left
    if config["compat"] != "mergekit":
        return left.div_(p)
    return left * parts.column(_factors(seen, config), left)


def _factors(seen: Any, config: Mapping[str, Any]) -> tuple[float, ...]:
    before, after = seen["l1"]
    factor = torch.where((before < 1e-7) | (after < 1e-7), torch.ones_like(before), before / after.clamp(min=1e-30))
    return tuple(f if d < 1 else 1.0 for f, d in zip(factor.tolist(), config["density"]))


def steps(config: Mapping[str, Any], seen: Any) -> Drop:
    """What drop() does, as steps."""
    norms = config["rescale"] and config["compat"] == "mergekit"
    return Drop(
        config["density"],
        config["seed"],
        scaled=config["rescale"] and not norms,
        factors=_factors(seen, config) if norms else None,
        epsilon=config.get("epsilon"),
        rising=config["compat"] == "mergekit",
    )
