"""How a loop's tokens are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .walk import Choice, Turn, Walked

if TYPE_CHECKING:
    from torch import nn


class Selected(Walked):
    """The loop takes tokens: in training the int(capacity T) with the highest w x, otherwise those with w x > 0."""

    capacity: float
    alpha: float
    whole: bool
    weight: float

    def choose(self, x: Tensor, last: Tensor) -> Choice:
        score = F.linear(x, self.router)[..., 0].float()
        go = score > 0 if self.capacity < 1 else torch.ones_like(score, dtype=torch.bool)
        return Choice(go, self.alpha * score.sigmoid(), last, score)

    def learn(self, x: Tensor, found: Choice) -> Tensor:
        if self.capacity >= 1:
            return found.go
        before, k = self.walk.before(self.loop), max(1, int(self.capacity * x.shape[1]))
        top = found.score.masked_fill(~before, -torch.inf).topk(k, 1).indices
        keep = torch.zeros_like(before).scatter(1, top, True) & before
        wrong = F.binary_cross_entropy_with_logits(found.score, keep.float(), reduction="none")
        self.walk.losses[self.loop] = self.weight * wrong[before].mean()
        return keep

    def merge(self, y: Tensor, entered: Tensor, first: Tensor, gate: Tensor, done: Tensor) -> Tensor:
        return entered + gate[..., None].to(y.dtype) * (y if self.whole else y - entered)


class Assigned(Walked):
    """The token takes a number of loops: the likeliest of p = softmax(w x), w (loops, d)."""

    alpha: float
    whole: bool
    weight: float

    def choose(self, x: Tensor, last: Tensor) -> Choice:
        if self.loop:
            return Choice(last >= self.loop, None, last, x)
        p = F.linear(x, self.router).float().softmax(-1)
        best, last = p.max(-1)
        return Choice(torch.ones_like(last, dtype=torch.bool), self.alpha * best, last, p)

    def learn(self, x: Tensor, found: Choice) -> Tensor:
        if self.loop == 0:
            p, seen = found.score, self.walk.seen
            taken = F.one_hot(found.last[seen], self.loops).float().mean(0)
            self.walk.losses[0] = self.weight * self.loops * (taken * p[seen].mean(0)).sum()
        return found.go

    def merge(self, y: Tensor, entered: Tensor, first: Tensor, gate: Tensor, done: Tensor) -> Tensor:
        full = first + gate[..., None].to(y.dtype) * (y if self.whole else y - first)
        return torch.where(done[..., None], full, y)


class Leaving(Walked):
    """A token leaves before a loop where w x / rms(x) + b > threshold. In training none does, but those that would are
    hidden from the others."""

    bias: nn.Parameter
    threshold: float
    weight: float

    def choose(self, x: Tensor, last: Tensor) -> Choice:
        """score (B, T): how likely the head says already what it will say in the end, as a logit."""
        if self.loop == 0:
            return Choice(torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device), None, last, x)
        states = (x.detach() if self.training else x).float()
        states = states * (states.square().mean(-1, True) + 1e-6).rsqrt()
        score = F.linear(states, self.router.float(), self.bias.float())[..., 0]
        return Choice(score <= self.threshold, None, last, score)

    def learn(self, x: Tensor, found: Choice) -> Tensor:
        walk = self.walk
        walk.stay[self.loop] = found.go & walk.stay[self.loop - 1] if self.loop else found.go
        if self.loop:
            walk.scores[self.loop] = x, found.score
        return walk.seen

    def entering(self, turn: Turn) -> None:
        """In training a token sees itself, and of the others those that are still there."""
        if not self.training or bool((stay := self.walk.stay[self.loop]).all()):
            return
        seen = stay[:, None, :] | torch.eye(stay.shape[1], dtype=torch.bool, device=stay.device)
        mask = turn.sub
        if mask is None:
            mask = torch.ones(1, 1, stay.shape[1], stay.shape[1], dtype=torch.bool, device=stay.device)
            mask = mask.tril() if self.walk.causal else mask
        if mask.dtype == torch.bool:
            turn.sub = mask & seen[:, None]
        else:
            turn.sub = mask.masked_fill(~seen[:, None], torch.finfo(mask.dtype).min)
