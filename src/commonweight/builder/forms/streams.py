"""Blocks that run for several streams of each row, prefixes of each stream, and the sum of the streams."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Behind:
    """Stands for a cache in one attention: what comes out of it has keys and values of each stream in front."""

    def __init__(self, cache: Any, keys: Tensor, values: Tensor):
        self.cache, self.prefix = cache, (keys, values)

    def update(self, keys: Tensor, values: Tensor, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **named)
        both = []
        for own, t in zip(self.prefix, (keys, values)):
            rows = own.unflatten(-1, (t.shape[1], t.shape[3])).transpose(1, 2)  # (n, heads, p, size)
            both.append(torch.cat([rows.repeat_interleave(len(t) // len(rows), 0).to(t.dtype), t], 2))
        return both[0], both[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


class Streamed:
    """The first block: n times the rows, stream after stream."""

    streams: int

    def grow(self, n: int) -> None:
        self.streams = n

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        return super().forward(hidden_states.repeat(self.streams, 1, 1), *args, **named)  # type: ignore[misc]


class Prefixed:
    """An attention of n streams, each behind `prefix_keys` and `prefix_values` (n, p, kv) of its own."""

    needs = (Behind,)
    streams: int

    def grow(self, n: int) -> None:
        self.streams = n

    def forward(self: Any, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        n, length = self.streams, hidden_states.shape[1]
        names = self.__dict__.setdefault("names", list(inspect.signature(super().forward).parameters))  # type: ignore[misc]
        named |= dict(zip(names[1:], args))
        past = "layer_past" if "layer_past" in names else "past_key_values"  # how this attention calls its cache
        turned = named.get("position_embeddings")
        if turned is not None and len(turned[0]) > 1:
            named["position_embeddings"] = tuple(t.repeat(n, 1, 1) for t in turned)
        mask, cache, keys = (
            named.get("attention_mask"),
            named.get(past),
            getattr(self, "prefix_keys", None),
        )
        if named.get("cache") is not None or not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 4)):
            raise ValueError("streams read masks of eager or sdpa attention, and no paged cache; use generate")
        if cache is not None and (kinds := {type(one).__name__ for one in cache.layers} - {"DynamicLayer"}):
            raise ValueError(f"streams need a DynamicCache without windows, not {type(cache).__name__} of {min(kinds)}")
        if keys is not None:
            if mask is None and length > 1:
                seen = length if cache is None else cache.get_seq_length(self.layer_idx) + length
                mask = torch.ones(length, seen, dtype=torch.bool, device=hidden_states.device).tril(seen - length)[
                    None, None
                ]
            if mask is not None:
                mask = F.pad(mask, (keys.shape[1], 0), value=mask.dtype == torch.bool)
            named[past] = Behind(cache, keys, self.prefix_values)
        if mask is not None and len(mask) > 1:
            mask = mask.repeat(n, 1, 1, 1)
        named["attention_mask"] = mask
        return super().forward(hidden_states, **named)  # type: ignore[misc]


class Gathered:
    """The last norm, and the sum of the streams, weighed by a network of all of them."""

    streams: int
    smooth: float

    def grow(self, n: int, smooth: float) -> None:
        self.streams, self.smooth = n, smooth

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        y = super().forward(hidden_states)  # type: ignore[misc]
        y = y.unflatten(0, (self.streams, -1)).movedim(0, -1)  # (B, T, d, n)
        score = F.linear(
            F.silu(F.linear(y.flatten(-2), self.mix_in, self.mix_in_bias)), self.mix_out, self.mix_out_bias
        )
        a = (1 - self.smooth) * score.float().softmax(-1) + self.smooth / self.streams
        return (y * a.to(y.dtype)[..., None, :]).sum(-1)
