"""Where a row's own tokens and those of its prompt stand in a longer row, and which of them are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Longer(NamedTuple):
    """[padding on the left; prompt; tokens; padding on the right; places that shorter prompts leave free].

    So a row is what it is alone, whatever the others bring, and a prompt stands beside the token that it is in front
    of. tokens, more: columns of the input T, and of the longest prompt M. begins: the column of each row's first token,
    (B,); None: 0. sizes: of each row's prompt, (B,); None: M. leads: in which rows the prompt's first vector is found
    in the first place of what comes out, (B,); None: in none. mask: (B, T + M); None: all is there.
    """

    tokens: int
    more: int
    begins: Tensor | None = None
    sizes: Tensor | None = None
    leads: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, sizes: Sequence[int], leads: Sequence[bool], mask: Tensor | None) -> Longer:
        """x: the input, (B, T, ...), with its mask (B, T), and so much more in each row."""
        most, device = max(sizes), x.device
        out = cls(x.shape[1], most, leads=torch.tensor(leads, device=device) if any(leads) else None)
        if min(sizes) < most:
            out = out._replace(sizes=torch.tensor(sizes, device=device))
        if mask is not None and not bool(mask[:, 0].all()):
            out = out._replace(begins=(mask.long().cumsum(-1) == 0).sum(-1))
        if mask is None and out.sizes is None:
            return out
        mine = torch.ones(x.shape[:2], dtype=torch.long, device=device) if mask is None else mask
        more = torch.ones(len(mine), most, dtype=torch.bool, device=device)
        if out.sizes is not None:
            more = torch.arange(most, device=device) < out.sizes[:, None]
        return out._replace(mask=out.joined(mine, more.to(mine)))

    @property
    def long(self) -> int:
        return self.tokens + self.more

    @property
    def plain(self) -> bool:
        return self.begins is None and self.sizes is None

    def ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(the column of a row's first token, that behind its prompt), (B, 1) each."""
        none = torch.zeros(len(like), dtype=torch.long, device=like.device)
        begins = none if self.begins is None else self.begins
        return begins[:, None], (begins + (self.more if self.sizes is None else self.sizes))[:, None]

    def joined(self, x: Tensor, more: Tensor) -> Tensor:
        """x (B, T, ...) with more (B, M, ...) in front of each row's first token."""
        if self.plain:
            return torch.cat([more, x], 1)
        begin, end = self.ends(x)
        at = torch.arange(self.long, device=x.device)
        behind = torch.where(at < self.tokens + end - begin, at - (end - begin), at)
        at = torch.where(at < begin, at, torch.where(at < end, at + self.tokens - begin, behind))
        return torch.cat([x, more], 1)[torch.arange(len(x), device=x.device)[:, None], at]

    def filled(self, ids: Tensor, plain: int, padding: int) -> Tensor:
        """Numbers of tokens (B, T) with one that means nothing in a prompt's places, and padding in those left free."""
        more = ids.new_full((len(ids), self.more), plain)
        if self.sizes is not None:
            more = torch.where(torch.arange(self.more, device=ids.device) < self.sizes[:, None], more, padding)
        return self.joined(ids, more)

    def numbered(self, positions: Tensor) -> Tensor:
        """Positions (B, T) that a caller gave, with those of prompts, which begin where a row began."""
        begin, end = self.ends(positions)
        first = positions.gather(1, begin.clamp(max=self.tokens - 1))
        more = first + torch.arange(self.more, device=positions.device)
        columns = torch.arange(self.tokens, device=positions.device)
        return self.joined(positions + (end - begin) * (columns >= begin), more)

    def cut(self, y: Any) -> Any:
        """Results without what belongs to prompts: states (B, T + M, d), attention (B, heads, T + M, keys)."""
        return pytree.tree_map(self._cut, y)

    def _cut(self, v: Any) -> Any:
        if not isinstance(v, Tensor) or v.dim() not in (3, 4) or v.shape[v.dim() - 2] != self.long:
            return v
        if self.plain and self.leads is None:
            return v[..., self.more :, :]
        begin, end = self.ends(v)
        at = torch.arange(self.tokens, device=v.device)
        at = at + (end - begin) * (at >= begin)
        if self.leads is not None:
            at[:, :1] = torch.where(self.leads[:, None], begin, at[:, :1])
        at = at.view(len(v), *[1] * (v.dim() - 3), self.tokens, 1)
        return v.gather(v.dim() - 2, at.expand(*v.shape[:-2], self.tokens, v.shape[-1]))
