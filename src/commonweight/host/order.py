"""Whether a layer is given the batch's rows in the batch's order, which shapes alone do not tell.

A table with as many entries as the batch has rows, learned queries before rows, tokens in one list with the rows in
turn, or rows that a model sorts: each has the shape of a batch. So a few rows are run in both orders, and what a layer
is given must turn with them.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Order:
    """What each site was given of a few rows, in four numbers a place. turned: whether the other order is run now.

    Cost: one product of the input with four columns, at every touched site in two passes.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {}
        self.at: dict[str, int] = {}  # how often each site was called in the other order
        self.turned = False
        self.made: dict[tuple[int, torch.device], Tensor] = {}

    def columns(self, width: int, device: torch.device) -> Tensor:
        """(width, 4), the same for every site; of these two passes alone, whose mode they are made in."""
        if (width, device) not in self.made:
            at = torch.arange(1, width + 1, device=device, dtype=torch.float32)
            self.made[width, device] = torch.stack([(at * f).sin() for f in (0.73, 1.37, 2.11, 3.31)], 1)
        return self.made[width, device]

    def holds(self, site: str, x: Tensor, rows: int) -> bool:
        """Keeps what a site is given, (rows, ..., d) or (rows T, d); in the other order, says whether it turned.

        A difference counts from a quarter of that between rows: rounding, which depends on where a row stands, is far
        below.
        """
        x = x.detach().reshape(rows, -1, x.shape[-1])
        mine = x.float() @ self.columns(x.shape[-1], x.device)
        if not self.turned:
            self.seen.setdefault(site, []).append(mine)
            return True
        i = self.at[site] = self.at.get(site, -1) + 1
        if i >= len(self.seen.get(site, [])):
            return True
        before = self.seen[site][i]
        if before.shape != mine.shape:
            return False
        rounding = 1e-4 if x.dtype in (torch.float32, torch.float64) else 2e-2
        limit = 0.25 * (before - before.mean(0)).norm(dim=-1).mean() + rounding * before.norm(dim=-1)
        return not bool(((mine.flip(0) - before).norm(dim=-1) > limit).any())  # NaN is a tenant's own matter
