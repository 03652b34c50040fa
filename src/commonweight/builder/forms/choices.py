"""How a loop's tokens are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .walk import Turn, Walked

if TYPE_CHECKING:
    from torch import nn


class Selected(Walked):
    """The loop takes tokens: in training the int(capacity T) with the highest w x, otherwise those with w x > 0."""

    capacity: float
    alpha: float
    whole: bool
    weight: float

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        walk, before = self.walk, self.walk.before(self.loop)
        score = F.linear(x, self.router)[..., 0].float()
        gate = self.alpha * score.sigmoid()
        if self.capacity >= 1:
            return before, gate
        if not self.training:
            return before & (score > 0), gate
        k = max(1, int(self.capacity * x.shape[1]))
        top = score.masked_fill(~before, -torch.inf).topk(k, 1).indices
        keep = torch.zeros_like(before).scatter(1, top, True) & before
        wrong = F.binary_cross_entropy_with_logits(score, keep.float(), reduction="none")
        walk.losses[self.loop] = self.weight * wrong[before].mean()
        return keep, gate

    def leave(self, x: Tensor, turn: Turn) -> Tensor:
        gate = (turn.gate * turn.alive)[..., None].to(x.dtype)
        return turn.entered + gate * (x if self.whole else x - turn.entered)


class Assigned(Walked):
    """The token takes a number of loops: the likeliest of softmax(w x), w (loops, d)."""

    alpha: float
    whole: bool
    weight: float

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        walk = self.walk
        if self.loop:
            return walk.before(self.loop) & (walk.last >= self.loop), walk.turns[0].gate
        p = F.linear(x, self.router).float().softmax(-1)
        best, walk.last = p.max(-1)
        if self.training:
            taken = F.one_hot(walk.last[walk.seen], self.loops).float().mean(0)
            walk.losses[0] = self.weight * self.loops * (taken * p[walk.seen].mean(0)).sum()
        return walk.seen, self.alpha * best

    def leave(self, x: Tensor, turn: Turn) -> Tensor:
        walk = self.walk
        last = torch.full_like(walk.last, self.loops - 1) if walk.everywhere else walk.last
        gate = turn.gate[..., None].to(x.dtype)
        done = walk.x + gate * (x if self.whole else x - walk.x)
        return torch.where((turn.alive & (last == self.loop))[..., None], done, x)


class Leaving(Walked):
    """A token leaves before a loop where w x / rms(x) + b > threshold. In training none does, but those that would are
    hidden from the others."""

    bias: nn.Parameter
    threshold: float
    weight: float

    def score(self, x: Tensor) -> Tensor:
        """(B, T), float32: how likely the head says already what it will say in the end, as a logit."""
        x = x.float()
        x = x * (x.square().mean(-1, True) + 1e-6).rsqrt()
        return F.linear(x, self.router.float(), self.bias.float())[..., 0]

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        walk, before = self.walk, self.walk.before(self.loop)
        if self.loop == 0:
            walk.stay[0] = before
            return before, before
        score = self.score(x.detach() if self.training else x)
        stay = score <= self.threshold
        if not self.training:
            return before & stay, before
        walk.scores[self.loop] = x, score
        walk.stay[self.loop] = walk.stay[self.loop - 1] & stay
        return before, before

    def entering(self, turn: Turn) -> None:
        """In training a token sees itself, and of the others those that are still there."""
        if not self.training or bool((stay := self.walk.stay[self.loop]).all()):
            return
        seen = stay[:, None, :] | torch.eye(stay.shape[1], dtype=torch.bool, device=stay.device)
        mask = turn.sub
        if mask is None:
            mask = torch.ones(stay.shape[1], stay.shape[1], dtype=torch.bool, device=stay.device).tril()[None, None]
        if mask.dtype == torch.bool:
            turn.sub = mask & seen[:, None]
        else:
            turn.sub = mask.masked_fill(~seen[:, None], torch.finfo(mask.dtype).min)
