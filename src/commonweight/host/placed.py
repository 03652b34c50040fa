"""For binds that go by a token's place in its row: how many tokens of the row come before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError, counted
from .current import NOWHERE, Current, Pass
from .padding import column
from .sites import Physical


def places(at: Physical, x: Tensor, current: Current) -> Tensor:
    """Which token of its row each of what a site is given (..., d) is, from 0 on, (..., 1): padding aside, which is
    nowhere, and with those that a cache holds. Images and sounds have none in a cache. A part of the model that is
    called by itself has no mask and no cache that we know of: all it is given are tokens, the first is at 0.

    Raises: CommonweightError where it is not given the rows of a text, or their mask does not say of each token whether
    it is padding."""
    run, padding = current.thread.run, current.padding
    whole = current.within_pass
    text = padding is not None and padding.tower(at.name) == "language"
    mask = padding.mask(run.masks, at.name) if text and whole else None  # type: ignore[union-attr]
    several = choices(run)
    chosen = mask.flatten(0, 1) if several is not None and isinstance(mask, Tensor) and mask.shape == several else None
    mask = mask if chosen is None else chosen
    if mask is not None and (seen := by_seen(mask, x, run.behind, padding.windows)) is not None:  # type: ignore[union-attr]
        return seen
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise CommonweightError(
            f"{at.name}: a tenant here goes by a token's place in its row, and the mask, {given}, does not say which "
            "tokens are padding; give one of (rows, tokens), and where attention has windows generate without a static "
            "cache, which makes another"
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
        there = current.there(at.name, rows)
    there = torch.ones(rows.shape[:2], dtype=torch.bool, device=x.device) if there is None else there.to(x.device)
    place = there.long().cumsum(-1) - 1
    if text and whole and run.past and not padding.of_encoder(at.name):
        place = place + before(mask, rows, run.behind)
    return place.masked_fill(~there, NOWHERE).reshape(*x.shape[:-1], 1)


def by_seen(mask: Any, x: Tensor, behind: int, windows: bool) -> Tensor | None:
    """The same by a mask of which token sees which, (B, 1, T, K), as a static cache makes it: how many of those up to
    itself a token sees; padding does not see itself. None where it is no such mask, or hides tokens by windows."""
    if isinstance(mask, Mapping):  # of layers of several kinds, of which those without a window see all
        mask, windows = mask.get("full_attention"), False
    if windows or not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1] != 1 or x.dim() != 3 or behind < 0:
        return None
    (_, _, t, k), at = mask.shape, torch.arange(behind, behind + x.shape[1], device=mask.device)
    if t != x.shape[1] or mask.shape[0] not in (1, len(x)) or behind + t > k:
        return None
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    if mask.dtype != torch.bool and not bool((seen | (mask[:, 0] < -1e4)).all()):
        return None  # it holds more than what is seen
    place = (seen & (torch.arange(k, device=mask.device) <= at[:, None])).sum(-1) - 1
    there = seen.gather(2, at.expand(len(seen), -1)[..., None])
    return place[..., None].masked_fill(~there, NOWHERE).expand(len(x), -1, -1).to(x.device)


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
        return (mask[:, : column(mask, rows.shape[1], behind)] != 0).sum(-1, keepdim=True).to(rows.device)
    return behind if behind > 0 else NOWHERE // 2  # a state does not count what it has read
