"""Which tokens of a pass come from the last invocation on, for tenants that act from there on alone (activated LoRA).

A row's start is a column of its whole text, what a cache holds of it included. In `generate` it is looked for in the
prompt alone, as PEFT does, and every new token is behind it. Elsewhere it is looked for in the tokens that a pass is
given; where they have none, the start that an earlier pass has left with the cache holds. A row without one is the
base's. Of texts side by side in one row, each of which begins at position 0, each has a start of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Pass
from .route import Route

NEVER = 1 << 40  # a column behind every text
MARK = "_commonweight_invoked"  # what a cache keeps: invocation -> starts of its rows


def last(ids: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """The column where the last occurrence of the tokens begins in each row of ids (B, T), NEVER without one: (B,)."""
    never = ids.new_full((ids.shape[0],), NEVER, dtype=torch.long)
    if ids.shape[1] < len(tokens):
        return never
    there = (ids.unfold(1, len(tokens), 1) == ids.new_tensor(tokens)).all(-1)
    column = torch.arange(there.shape[1], device=ids.device)
    return torch.where(there.any(1), torch.where(there, column, -1).amax(1), never)


@torch.compiler.disable(reason="where an activated LoRA begins is looked for in the token ids, beside what is traced")
def since(run: Pass, route: Route, tokens: tuple[int, ...], site: str, replayed: bool) -> Tensor:
    """How many tokens before it the invocation began, of each token of the pass, (B, T, 1); below 0 where it has not
    begun. Worked out when the first site asks."""
    if run.given is None and not replayed:
        raise CommonweightError(
            f"{site}: where an activated LoRA begins comes of the whole model's input; call the model, not a part of it"
        )
    if tokens not in run.since:
        run.since[tokens] = _found(run, route, tokens, site)
    return run.since[tokens]


def _found(run: Pass, route: Route, tokens: tuple[int, ...], site: str) -> Tensor:
    if run.ids is None or run.ids.dim() != 2 or run.ids.is_floating_point():
        raise CommonweightError(
            f"{site}: an activated LoRA begins where token ids say, and the model was given none; give it input_ids"
        )
    if "decoder_input_ids" in run.masks:
        raise CommonweightError(f"{site}: an activated LoRA is for one text a row, not for an encoder and a decoder")
    (rows, length), behind = run.ids.shape, _behind(run, route, tokens)
    if route.prompt is not None:
        starts = _repeated(last(route.prompt.to(run.ids.device), tokens), rows, site)
    else:
        found = last(run.ids, tokens)
        known = _known(run, tokens, behind, rows, site).to(found.device)
        starts = torch.where(found < NEVER, found + behind, known)
    run.starts[tokens] = starts
    if not behind and route.prompt is None and (text := _texts(run, rows, length)) is not None:
        return _of_texts(run.ids, tokens, text)[..., None]
    return (behind + torch.arange(length, device=starts.device) - starts[:, None])[..., None]


def _texts(run: Pass, rows: int, length: int) -> Tensor | None:
    """Which of its row's texts each token is of, (B, T), as the caller says by positions; None of one text a row."""
    places = run.numbers
    if not isinstance(places, Tensor) or places.dim() != 2 or places.shape not in {(1, length), (rows, length)}:
        return None
    text = (places == 0).cumsum(-1).expand(rows, -1)
    return text if bool((text[:, -1] > 1).any()) else None


def _of_texts(ids: Tensor, tokens: tuple[int, ...], text: Tensor) -> Tensor:
    """How many tokens behind the last occurrence in its text each stands, (B, T)."""
    (rows, length), n = ids.shape, len(tokens)
    text, column = text.to(ids.device), torch.arange(length, device=ids.device)
    begins = ids.new_full((rows, int(text.max()) + 1), NEVER)
    if length >= n:
        there = (ids.unfold(1, n, 1) == ids.new_tensor(tokens)).all(-1)
        first, end = text[:, : length - n + 1], text[:, n - 1 :]
        found = torch.where(there & (first == end), column[: length - n + 1], -1)
        begins = ids.new_full(begins.shape, -1).scatter_reduce(1, first, found, "amax")
        begins = torch.where(begins < 0, NEVER, begins)
    return column - begins.gather(1, text)


def _behind(run: Pass, route: Route, tokens: tuple[int, ...]) -> int:
    """How many columns stand before this pass. Of states that count nothing, as many as the mask says; else all that
    are known."""
    if run.behind >= 0:
        return run.behind
    assert run.ids is not None
    mask = run.masks.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > run.ids.shape[1]:
        return mask.shape[1] - run.ids.shape[1]
    if route.prompt is not None:
        return route.prompt.shape[1]
    left = _left(run, tokens)
    return 1 + (0 if left is None else max((s for s in left.tolist() if s < NEVER), default=0))


def _left(run: Pass, tokens: tuple[int, ...]) -> Tensor | None:
    """What an earlier pass has left with the cache."""
    assert run.given is not None
    return next(
        (getattr(v, MARK).get(tokens) for v in (*run.given[1], *run.given[2].values()) if hasattr(v, MARK)), None
    )


def _known(run: Pass, tokens: tuple[int, ...], behind: int, rows: int, site: str) -> Tensor:
    """Starts that an earlier pass has left; those of what the cache holds no longer are none."""
    left = _left(run, tokens) if behind else None
    if left is None:
        return torch.full((rows,), NEVER)
    left = _repeated(left, rows, site)
    return torch.where(left < behind, left, NEVER)


def _repeated(starts: Tensor, rows: int, site: str) -> Tensor:
    """For rows that stand there several times each, one copy after the other, as of beams."""
    if not len(starts) or rows % len(starts):
        raise CommonweightError(
            f"{site}: {counted(rows, 'row')} go on from a text of {counted(len(starts), 'row')}, so that it cannot be "
            "known where an activated LoRA begins in each; call the model with the whole texts"
        )
    return starts.repeat_interleave(rows // len(starts))


def remember(run: Pass, out: Any) -> None:
    """Leaves the starts with the cache that a pass gives out."""
    if not run.starts:
        return
    for v in out.values() if isinstance(out, Mapping) else out if isinstance(out, tuple) else ():
        if hasattr(v, "get_seq_length") or hasattr(v, "has_previous_state"):
            v.__dict__[MARK] = {**getattr(v, MARK, {}), **run.starts}


def fitted(mask: Tensor, x: Tensor, site: str) -> Tensor:
    """A pass's mask (B, T, 1) for what a site is given: (B, T, ..., d), all tokens in one list, or the last of
    each row, as a head is. Raises: Unfit for anything else."""
    rows, length = mask.shape[:2]
    if x.shape[:2] == (rows, length):
        return mask.reshape(rows, length, *[1] * (x.dim() - 2))
    if x.dim() == 2 and len(x) == rows * length:
        return mask.reshape(-1, 1)
    if x.dim() == 3 and len(x) == rows and x.shape[1] < length:
        return mask[:, -x.shape[1] :]
    raise Unfit(
        f"{site}: it is given {tuple(x.shape)} in a pass of {rows} x {length} tokens, so that it cannot be known which "
        "of them follow the invocation (activated LoRA); make the tenant without this site",
        site,
    )
