"""For binds that go by a token's place in its row: how many tokens of the row come before it."""

from __future__ import annotations

import torch
from torch import Tensor

from .current import NOWHERE, Current
from .sites import Physical
from .states import recomputing


def places(at: Physical, x: Tensor, current: Current) -> Tensor:
    """Which token of its row each of what a site is given (..., d) is, from 0 on, (..., 1): padding aside, which is
    nowhere, and with those that a cache holds. Images and sounds have none in a cache."""
    run, padding = current.thread.run, current.padding
    text = padding is not None and padding.tower(at.name) == "language"
    listed = x.dim() < 3 and text and run.rows and len(x) % run.rows == 0  # all rows' tokens in one list
    rows = x.reshape(run.rows if listed else len(x) if x.dim() > 2 else 1, -1, x.shape[-1])
    there = current.there(at.name, rows)
    there = torch.ones(rows.shape[:2], dtype=torch.bool, device=x.device) if there is None else there.to(x.device)
    place = there.long().cumsum(-1) - 1
    whole = run.given is not None or current.replayed or recomputing()  # else what is known is of an earlier pass
    if text and whole and run.past and not padding.of_encoder(at.name):  # type: ignore[union-attr]
        place = place + before(padding.mask(run.masks, at.name), rows, run.behind)  # type: ignore[union-attr]
    return place.masked_fill(~there, NOWHERE).reshape(*x.shape[:-1], 1)


def before(mask: Tensor | None, rows: Tensor, behind: int) -> Tensor | int:
    """How many tokens of each row a cache holds, (B, 1), as far as the mask says it; else as many as it has columns."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == len(rows) and mask.shape[1] > rows.shape[1]:
        return (mask[:, : -rows.shape[1]] != 0).sum(-1, keepdim=True).to(rows.device)
    return behind if behind > 0 else NOWHERE // 2  # a state does not count what it has read
