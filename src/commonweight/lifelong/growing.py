"""One LoRA that grows by a rank a task: what earlier tasks trained is held, the newest rows alone move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Plan
from ..core.schedule import NONE, Edit, Moment, Pools, State
from .asks import Learned, body


@dataclass(frozen=True)
class Held:
    """A schedule: masks of pools, True where a number stays what it is at the start."""

    masks: Mapping[str, Tensor]

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        return NONE, Edit(held=self.masks)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        return NONE, Edit()

    def settled(self, step: int, steps: int) -> bool:
        return True


def options(rank: int, alpha: float, tasks: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a LoRA of so many tasks' ranks, whose scale is alpha / rank whatever their number."""
    return {**given, "rank": rank * tasks, "alpha": alpha * tasks}


def widened(old: Learned, fresh: Pools) -> dict[str, Tensor]:
    """A and B with the old rank in front, and behind it what the fresh ones have: A (r', d_in), B (d_out, r')."""
    out = {}
    for n, p in body(old).items():
        new, r = fresh[n].clone(), p.shape[0] if n.endswith(".A") else p.shape[-1]
        if n.endswith(".A"):
            new[:r] = p
        elif n.endswith(".B"):
            new[:, :r] = p
        else:
            new = p
        out[n] = new
    return out


def masks(pools: Pools, before: int, a_too: bool) -> dict[str, Tensor]:
    """True where a number is of an earlier task. before: rank of all of them. a_too: all of A is held."""
    out = {}
    for n, p in pools.items():
        m = torch.zeros(p.shape, dtype=torch.bool)
        if n.endswith(".A"):
            m[: p.shape[0] if a_too else before] = True
        elif n.endswith(".B"):
            m[:, :before] = True
        out[n] = m
    return out
