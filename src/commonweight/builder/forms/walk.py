"""Blocks that run for some of the tokens: the others are not computed, nor written into the cache."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


class Choice(NamedTuple):
    """go (B, T): the tokens that run a loop, of those that ran the one before. gate (B, T): how much of it counts;
    None: as before. last (B, T): the last loop of each, as far as it is known. score: what it was chosen by."""

    go: Tensor
    gate: Tensor | None
    last: Tensor
    score: Tensor


class Turn:
    """One loop of a forward pass. alive (B, T): the tokens that run it. entered: the states before it."""

    gate: Tensor

    def __init__(self, walk: Walk, keep: Tensor, entered: Tensor, slot: int | None):
        """slot: of the cache, for which tokens this loop's slots hold; None: they hold all tokens."""
        self.alive, self.entered = keep, entered
        rows, length = keep.shape
        self.count = int(keep.sum(1).max())
        self.index = self.real = self.sub = None
        if self.count == 0:
            return
        if self.count < length or not bool(keep.all()):
            self.index = (~keep).byte().argsort(dim=1, stable=True)[:, : self.count]
            self.real = keep.gather(1, self.index)
        cache = walk.cache
        before = walk.past
        at = torch.arange(before, before + length, device=keep.device).expand(rows, length)
        at = at if self.index is None else at.gather(1, self.index)
        places = at if self.real is None else at.masked_fill(~self.real, -1)
        held = places
        if slot is None:
            held = torch.arange(before + length, device=keep.device).expand(rows, -1)
        elif cache is not None:
            while len(cache.layers) <= slot:
                cache.layers.append(type(cache.layers[-1])())
            wide = places[:, None, :, None]
            held = cache.layers[slot].update(wide, wide[..., :0])[0][:, 0, :, 0]
        self.sub = self._mask(walk.mask, at, places, held, before + length, slot, walk.causal)

    def _mask(
        self, mask: Tensor | None, at: Tensor, places: Tensor, held: Tensor, length: int, slot: int | None, causal: bool
    ) -> Tensor | None:
        """(B, 1, k, S): what these tokens see of those that the loop holds; None: what attention sees by itself."""
        full = bool((held >= 0).all())
        if full and held.shape[1] == length and self.index is None:
            return mask
        if mask is None and not causal:
            if full:
                return None
            sees = (held >= 0)[:, None, :].expand(-1, at.shape[1], -1)
        elif mask is None:
            last = at.shape[1] == 1 and int(held.max()) <= int(places.min())
            if full and (last or (slot is not None and held.shape[1] == at.shape[1])):
                return None
            sees = held[:, None, :] <= places[:, :, None]
        else:
            sees = mask.expand(len(at), *mask.shape[1:])[:, 0]
            if sees.shape[1] > 1:
                rows = at - (length - sees.shape[1])
                sees = sees.gather(1, rows[..., None].expand(-1, -1, sees.shape[2]))
            sees = sees.expand(-1, at.shape[1], -1).gather(2, held.clamp(min=0)[:, None].expand(-1, at.shape[1], -1))
        hidden = (held < 0)[:, None, :] & (places >= 0)[:, :, None]  # what is no token sees all, against NaN
        if sees.dtype == torch.bool:
            return (sees & ~hidden | (places < 0)[:, :, None])[:, None]
        return sees.masked_fill(hidden, torch.finfo(sees.dtype).min)[:, None]

    def of(self, t: Tensor) -> Tensor:
        """The tokens of this loop, of (B or 1, T, ...)."""
        if self.index is None:
            return t
        index = self.index.view(*self.index.shape, *(1 for _ in t.shape[2:]))
        return t.expand(len(self.index), *t.shape[1:]).gather(1, index.expand(*self.index.shape, *t.shape[2:]))

    def named(self, named: dict[str, Any]) -> dict[str, Any]:
        """What a block is given beside its states, for these tokens."""
        rows, length = self.alive.shape

        def one(v: Any) -> Any:
            if isinstance(v, tuple):
                return tuple(one(t) for t in v)
            fits = isinstance(v, Tensor) and v.dim() > 1 and v.shape[1] == length and v.shape[0] in (1, rows)
            return self.of(v) if fits else v

        return {**{k: one(v) for k, v in named.items() if k != "attention_mask"}, "attention_mask": self.sub}

    def back(self, x: Tensor, y: Tensor) -> Tensor:
        """x with y in the place of these tokens."""
        if self.index is None or self.real is None:
            return y
        y = torch.where(self.real[..., None], y, self.of(x))
        return x.scatter(1, self.index[..., None].expand_as(y), y.to(x.dtype))


class Walk:
    """What the blocks of a model tell each other in one forward pass, loop by loop. losses: of the routers.
    everywhere: all tokens run all loops."""

    everywhere = False
    causal = True  # what attention does where there is no mask
    eager = False
    stay: dict[int, Tensor]  # of a loop (B, T): in training, the tokens that have not left
    last: Tensor  # (B, T): the last loop of each token, as far as it is known
    gate: Tensor  # (B, T)
    sums: dict[int, Tensor]  # of a loop: what halted, (B, T, d)
    never: dict[int, Tensor]  # of a loop: the log probability of not having halted, (B, T)
    kept: dict[int, Any]  # of a loop: keys and values of all tokens
    heard: Tensor  # what keys and values are made of
    scores: dict[int, tuple[Tensor, Tensor]]  # of a loop: states before it (B, T, d), and what a classifier says

    def __init__(self) -> None:
        self.turns: dict[int, Turn] = {}
        self.losses: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy remembers no pass."""
        return {"everywhere": self.everywhere, "causal": self.causal, "eager": self.eager, "turns": {}, "losses": {}}

    def begin(self, x: Tensor, named: dict[str, Any], ends: int, loops: int) -> None:
        """ends: blocks that have run already, and written into their slots."""
        mask, cache = named.get("attention_mask"), named.get("past_key_values")
        if named.get("cache") is not None or not (mask is None or isinstance(mask, Tensor)):
            raise ValueError("depth per token reads masks of eager or sdpa attention, and no paged cache; use generate")
        if cache is not None and (kinds := {type(one).__name__ for one in cache.layers} - {"DynamicLayer"}):
            raise ValueError(
                f"depth per token needs a DynamicCache without windows, not {type(cache).__name__} of {min(kinds)}"
            )
        self.x, self.mask, self.cache, self.turns, self.losses = x, mask, cache, {}, {}
        self.scores, self.stay, self.past = {}, {}, 0
        if cache is not None:
            self.past = cache.get_seq_length() - (x.shape[1] if ends else 0)
        self.last = torch.full(x.shape[:2], loops - 1, device=x.device)
        self.gate = torch.ones(x.shape[:2], device=x.device)
        self.seen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if mask is not None and ends:  # what nobody sees is padding
            sees = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            self.seen = self.seen & sees.flatten(1, -2).any(1)[:, -x.shape[1] :]

    def before(self, loop: int) -> Tensor:
        """(B, T): the tokens that ran the loop before."""
        return self.turns[loop - 1].alive if loop else self.seen

    @property
    def ran(self) -> Tensor:
        """(B, T): how many loops each token has run."""
        return sum(t.alive.long() for t in self.turns.values())  # type: ignore[return-value]


class Walked:
    """A block of a loop. The first one of each loop chooses the tokens, and the last one ends it."""

    held, together = False, Walk  # every loop's slots hold all tokens
    needs: tuple[type, ...] = (Choice, Turn, Walk)
    router: nn.Parameter
    walk: Walk
    loop: int
    loops: int
    at: int
    of: int
    slot: int
    ends: int
    training: bool

    def grow(self, **options: Any) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    def beside(self) -> Tensor | None:
        """The loss of the routers in the last forward pass."""
        losses = list(self.walk.losses.values()) if self.loop == self.at == 0 else []
        return torch.stack(losses).sum() if losses else None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        walk, block, x = self.walk, super().forward, hidden_states  # type: ignore[misc]
        names = self.__dict__.setdefault("names", list(inspect.signature(block).parameters))
        named = {**dict(zip(names[1:], args)), **kwargs}
        past = "layer_past" if "layer_past" in names else "past_key_values"  # how this block calls its cache
        named["past_key_values"] = named.pop(past, None)
        if self.at == 0:
            if self.loop == 0:
                configs = [m.config for m in self.modules() if hasattr(m, "config")]  # type: ignore[attr-defined]
                walk.eager = any(getattr(c, "_attn_implementation", "") == "eager" for c in configs)
                if flags := [m.is_causal for m in self.modules() if hasattr(m, "is_causal")]:  # type: ignore[attr-defined]
                    walk.causal = any(flags)
                walk.begin(x, named, self.ends, self.loops)
            self.entering(self.begun(x))
        turn, rest = walk.turns[self.loop], None
        if turn.count:
            given = self.given(turn, named)
            if walk.eager and (mask := given["attention_mask"]) is not None and mask.dtype == torch.bool:
                least = torch.finfo(x.dtype).min  # eager attention adds what it is given
                given["attention_mask"] = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, least)
            given[past] = given.pop("past_key_values", None)
            y = block(turn.of(x), **{k: v for k, v in given.items() if k != past or v is not None})
            rest = y[1:] if isinstance(y, tuple) else None
            x = turn.back(x, y if rest is None else y[0])  # type: ignore[arg-type]
        else:
            self.idle(turn)
        if self.at == self.of - 1:
            merged = self.merge(x, turn.entered, walk.x, turn.gate, walk.last == self.loop)
            x = torch.where(turn.alive[..., None], merged, x)
        if self.at == self.of - 1 and self.loop == self.loops - 1:
            x = self.end(x)
        return x if rest is None else (x, *rest)

    def alone(self, x: Tensor, **named: Any) -> Tensor:
        """The block itself."""
        y = super().forward(x, **named)  # type: ignore[misc]
        return y[0] if isinstance(y, tuple) else y

    def begun(self, x: Tensor) -> Turn:
        """The turn of the loop that begins with these states."""
        walk = self.walk
        found = self.choose(x, walk.last)
        keep = self.learn(x, found) if self.training else walk.before(self.loop) & found.go
        if walk.everywhere:
            keep = walk.seen
        else:
            walk.last = found.last
        walk.gate = walk.gate if found.gate is None else found.gate
        turn = walk.turns[self.loop] = Turn(walk, keep, x, None if self.held else self.slot)
        turn.gate = walk.gate
        return turn

    def choose(self, x: Tensor, last: Tensor) -> Choice:
        """Which of the tokens with states x (B, T, d) run this loop."""
        raise NotImplementedError

    def learn(self, x: Tensor, found: Choice) -> Tensor:
        """Which run it in training, (B, T); leaves a loss in the walk."""
        raise NotImplementedError

    def end(self, x: Tensor) -> Tensor:
        """What comes of all loops."""
        return x

    def given(self, turn: Turn, named: dict[str, Any]) -> dict[str, Any]:
        """What a block is given beside the states of its tokens."""
        return turn.named(named)

    def idle(self, turn: Turn) -> None:
        """In place of a block that has no tokens."""

    def entering(self, turn: Turn) -> None:
        """What else a loop changes at its beginning."""

    def merge(self, y: Tensor, entered: Tensor, first: Tensor, gate: Tensor, done: Tensor) -> Tensor:
        """The states after the loop, of y, those before it, and those before all loops. done: it was the last one."""
        return y
