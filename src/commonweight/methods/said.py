"""What a tenant's routers said in a pass, from which its method makes a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class Said(NamedTuple):
    """Of one site: logits (n, E) of the tenant's own tokens, with gradients; real (n,): 1, and 0 for padding."""

    logits: Tensor
    real: Tensor


RouterLoss = Callable[[Mapping[str, Said]], Tensor]  # of what was said at each site -> a number
