"""Updates that grow while they train: how many directions are wanted at a step, and the scale that falls with them."""

from __future__ import annotations

import math


def over(rank: int) -> float:
    """1 / (r + 1e-5), as the official codes of IncreLoRA and TriAdaptLoRA divide."""
    return 1 / (rank + 1e-5)


def wanted(step: int, first: int, last: int, start: int, target: int) -> int:
    """Directions of all sites together: `start` until the step `first`, then evenly more, `target` from `last` on."""
    if step >= last:
        return target
    if step <= first:
        return start
    return start + math.floor((target - start) * (step - first) / (last - first))
