"""Tokens that halt with a probability at each step; what others attend to is the state that is expected of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .walk import Choice, Turn, Walk, Walked

if TYPE_CHECKING:
    from torch import nn


class Filled:
    """Stands for the cache in one step: keys and values of tokens that have halted are those of the step before."""

    new: tuple[Tensor, Tensor]

    def __init__(self, turn: Turn, before: Filled | None, cache: Any, layer: int):
        self.turn, self.before, self.cache, self.layer = turn, before, cache, layer

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        old = (keys, values) if self.before is None else self.before.new
        self.new = self._filled(old[0], keys), self._filled(old[1], values)
        return self.write()

    def write(self) -> tuple[Tensor, Tensor]:
        keys, values = self.new
        return (keys, values) if self.cache is None else self.cache.update(keys, values, self.layer)

    def _filled(self, old: Tensor, new: Tensor) -> Tensor:
        index, real = self.turn.index, self.turn.real
        if index is None or real is None:
            return new
        at = index[:, None, :, None].expand_as(new)
        return old.scatter(2, at, torch.where(real[:, None, :, None], new, old.gather(2, at)))


class Halted(Walked):
    """Stick breaking: before step l a token halts with a_l = never halt(h); its state is sum a_l h_l + never h."""

    held, needs = True, (Choice, Turn, Walk, Filled)
    halt_in: nn.Parameter
    halt_out: nn.Parameter
    halt_bias: nn.Parameter
    done: float
    weight: float

    def choose(self, x: Tensor, last: Tensor) -> Choice:
        walk, loop = self.walk, self.loop
        if loop == 0:
            walk.sums, walk.kept = {0: torch.zeros_like(x)}, {}
            walk.never = {0: torch.zeros(x.shape[:2], device=x.device)}
            return Choice(walk.seen, None, last, x)
        here = F.linear(F.relu(F.linear(x, self.halt_in)), self.halt_out, F.pad(self.halt_bias, (1, 0)))
        go, stop = here.float().log_softmax(-1).unbind(-1)
        before, never = walk.before(loop), walk.never[loop - 1]
        part = (never + stop).exp() * before
        walk.sums[loop] = walk.sums[loop - 1] + part[..., None].to(x.dtype) * x
        walk.never[loop] = torch.where(before, never + go, never)
        return Choice(walk.never[loop].exp() >= 1 - self.done, None, last, part)

    def learn(self, x: Tensor, found: Choice) -> Tensor:
        walk, loop = self.walk, self.loop
        if loop and self.weight:
            steps = found.score * loop
            if loop == self.loops - 1:
                steps = steps + walk.never[loop].exp() * self.loops
            walk.losses[loop] = self.weight * steps[walk.seen].mean()
        return walk.before(loop) & found.go

    def soft(self, x: Tensor) -> Tensor:
        """The state that is expected of a token."""
        walk = self.walk
        return walk.sums[self.loop] + walk.never[self.loop].exp()[..., None].to(x.dtype) * x

    def given(self, turn: Turn, named: dict[str, Any]) -> dict[str, Any]:
        walk = self.walk
        walk.heard = turn.of(self.soft(turn.entered))
        filled = walk.kept[self.loop] = Filled(turn, walk.kept.get(self.loop - 1), walk.cache, self.loop)
        return {**turn.named(named), "past_key_values": filled}

    def idle(self, turn: Turn) -> None:
        """All have halted; what they are to later tokens is written still."""
        filled = Filled(turn, None, self.walk.cache, self.loop)
        filled.new = self.walk.kept[self.loop - 1].new
        self.walk.kept[self.loop] = filled
        filled.write()

    def end(self, x: Tensor) -> Tensor:
        return self.soft(x)


class Heard:
    """A norm before attention: beside its own input it norms what keys and values are made of."""

    together, needs = Walk, (Choice, Turn, Walk)
    walk: Walk

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.walk.heard = super().forward(self.walk.heard)  # type: ignore[misc]
        return super().forward(hidden_states)  # type: ignore[misc]


class Spoken:
    """A layer of keys or values, made of what was heard."""

    together, needs = Walk, (Choice, Turn, Walk)
    walk: Walk

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.walk.heard)  # type: ignore[misc]
