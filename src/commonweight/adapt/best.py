"""The pools that the dev rows liked best, and for how many looks nothing better has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Best:
    """pools: those in training, by name. found: a copy of them at the best score, None before the first.

    configs: those of the scheduled tenants at that score: by others their pools have other shapes. bad: how many scores
    since then were no better. Cost: one copy of the pools.
    """

    def __init__(self, pools: Mapping[str, Tensor]):
        self.pools = pools
        self.found: dict[str, Tensor] | None = None
        self.configs: Sequence[Any] = ()
        self.score: float | None = None
        self.bad = 0

    def see(self, metrics: Mapping[str, float], better: tuple[str, bool], configs: Sequence[Any] = ()) -> None:
        """better: the metric that decides, and whether more of it is better."""
        name, more = better
        score = metrics[name] if more else -metrics[name]
        if self.score is None or score > self.score:
            self.score, self.bad = score, 0
            self.configs = configs
            self.found = {n: p.detach().clone() for n, p in self.pools.items()}
        else:
            self.bad += 1

    @torch.no_grad()
    def put_back(self) -> None:
        """What was found becomes the pools; without dev rows they stay as they are."""
        for n, p in (self.found or {}).items():
            self.pools[n].copy_(p)
