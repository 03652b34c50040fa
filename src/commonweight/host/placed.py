"""For binds that go by a token's place in its row: how many tokens of the row come before it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import CommonweightError, counted
from .current import NOWHERE, Current, Pass
from .sites import Physical
from .states import recomputing


def places(at: Physical, x: Tensor, current: Current) -> Tensor:
    """Which token of its row each of what a site is given (..., d) is, from 0 on, (..., 1): padding aside, which is
    nowhere, and with those that a cache holds. Images and sounds have none in a cache. A part of the model that is
    called by itself has no mask and no cache that we know of: all it is given are tokens, the first is at 0.

    Raises: CommonweightError where it is not given the rows of a text, or their mask does not say of each token whether
    it is padding."""
    run, padding = current.thread.run, current.padding
    whole = run.given is not None or current.replayed or recomputing()  # else what is known is of an earlier pass
    text = padding is not None and padding.tower(at.name) == "language"
    mask = padding.mask(run.masks, at.name) if text and whole else None  # type: ignore[union-attr]
    several = choices(run)
    chosen = mask.flatten(0, 1) if several is not None and isinstance(mask, Tensor) and mask.shape == several else None
    mask = mask if chosen is None else chosen
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise CommonweightError(
            f"{at.name}: a tenant here goes by a token's place in its row, and the mask, {given}, does not say which "
            "tokens are padding; give one of (rows, tokens), and generate without a static cache, which makes another"
        )
    count = run.rows if several is None else several[0] * several[1]
    if text and whole and x.dim() > 2 and count and len(x) != count:
        raise CommonweightError(
            f"{at.name}: it is given {tuple(x.shape)} in a pass of {counted(count, 'row')}, so that a token's place in "
            "its row is not known; make the tenant without this site"
        )
    listed = x.dim() < 3 and text and whole and run.rows and len(x) % run.rows == 0  # all rows' tokens in one list
    rows = x.reshape(run.rows if listed else len(x) if x.dim() > 2 else 1, -1, x.shape[-1])
    if chosen is not None and chosen.shape == rows.shape[:2]:
        there = chosen.bool()
    else:
        there = current.there(at.name, rows) if whole else None
    there = torch.ones(rows.shape[:2], dtype=torch.bool, device=x.device) if there is None else there.to(x.device)
    place = there.long().cumsum(-1) - 1
    if text and whole and run.past and not padding.of_encoder(at.name):
        place = place + before(mask, rows, run.behind)
    return place.masked_fill(~there, NOWHERE).reshape(*x.shape[:-1], 1)


def choices(run: Pass) -> torch.Size | None:
    """(B, C, T) where a model chooses among C texts a row, which it reads as B C rows; else None."""
    given = run.vectors[..., 0] if run.ids is None and isinstance(run.vectors, Tensor) else run.ids
    return (
        given.shape
        if given is not None and given.dim() == 3 and (given is not run.ids or not given.is_floating_point())
        else None
    )


def before(mask: Tensor | None, rows: Tensor, behind: int) -> Tensor | int:
    """How many tokens of each row a cache holds, (B, 1), as far as the mask says it; else as many as it has columns."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == len(rows) and mask.shape[1] > rows.shape[1]:
        return (mask[:, : -rows.shape[1]] != 0).sum(-1, keepdim=True).to(rows.device)
    return behind if behind > 0 else NOWHERE // 2  # a state does not count what it has read
