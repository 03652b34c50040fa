"""Keys and values of a depth-wise runner, place by place, and blocks that run for tokens of many places at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..host.paged import How, Plan, Singles, attended, singles
from ..host.prepacked import prepack, unpack

NAME = "commonweight_depths"
GROUPS, LEAST = 4, 8  # tokens that attend together have about as many keys: ours, so many groups of so many


@dataclass(frozen=True)
class Laid:
    """The tokens of a step, N of them. write (N,): the rows that their keys take. at (1, N): their positions."""

    plan: Plan
    write: Tensor
    at: Tensor


class Shelves:
    """Keys and values of each block: `length` rows for each place, one after the other.

    A row has kv heads * head size numbers. Memory: 2 * places * length rows for each block.
    """

    def __init__(self, model: Any, blocks: Sequence[tuple[nn.Module, int]], length: int):
        """blocks: each with its number of places."""
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, attend)
        self.model, self.length = model, length
        config = model.config
        self.heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kind: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
        self._stores = {
            id(b): tuple(torch.zeros(places * length, self.heads * size, **kind) for _ in range(2))
            for b, places in blocks
        }
        self._layers = nn.ModuleList([b for b, _ in blocks])

    @contextmanager
    def running(self, *others: nn.Module) -> Iterator[None]:
        """The model's attention is `attend` meanwhile, and on a CPU linear layers are laid out for oneDNN."""
        before = self.model.config._attn_implementation
        found = prepack(nn.ModuleList([*self._layers, *others]), None)
        self.model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)
            unpack(found)

    def lay(self, places: np.ndarray, held: np.ndarray, counts: np.ndarray, at: np.ndarray) -> Laid:
        """counts: tokens of each place, in order; held: those that it has before them. at (N,): their positions."""
        ends = np.cumsum(counts)
        first = places * self.length
        write = np.repeat(first + held - (ends - counts), counts) + np.arange(ends[-1])
        device = self.model.device
        return Laid(self._plan(first, held + counts, counts, ends), _tensor(write, device), _tensor(at, device)[None])

    def _plan(self, first: np.ndarray, keys: np.ndarray, counts: np.ndarray, ends: np.ndarray) -> Plan:
        """first: the row of each place's first key; keys: how many its last token sees."""
        spans = [
            (int(ends[i] - counts[i]), int(ends[i]), slice(int(first[i]), int(first[i] + keys[i])))
            for i in np.flatnonzero(counts > 1)
        ]
        one = np.flatnonzero(counts == 1)
        if len(one) and (keys[one] != keys[one[0]]).any():
            one = one[np.argsort(keys[one], kind="stable")]
            groups = np.array_split(one, min(GROUPS, max(1, len(one) // LEAST)))
        else:
            groups = [one] if len(one) else []
        return Plan(spans, [self._singles(g, first, keys, ends, not spans and len(g) == len(counts)) for g in groups])

    def _singles(self, some: np.ndarray, first: np.ndarray, keys: np.ndarray, ends: np.ndarray, whole: bool) -> Singles:
        """Some places that have one token each. whole: every place of the step."""
        at = None if whole and not (np.diff(some) != 1).any() else torch.from_numpy(ends[some] - 1)
        starts, lengths = torch.from_numpy(first[some]), torch.from_numpy(keys[some])
        return singles(at, starts, lengths, self.model.device, None, self.model.dtype)

    def run(self, blocks: Sequence[Any], x: Tensor, laid: Laid, rotary: Any) -> Tensor:
        """x (N, d) through blocks."""
        x = x[None]
        for block in blocks:
            how: dict[str, Any] = {
                "attention_mask": None, "position_ids": laid.at, "position_embeddings": rotary, "use_cache": True,
                "past_key_values": _Shelf(self._stores[id(block)], laid.write), "laid": (laid.plan, self.heads),
            }  # fmt: skip
            y = block.alone(x, **how) if hasattr(block, "walk") else block(x, **how)
            x = y[0] if isinstance(y, tuple) else y
        return x[0]


class _Shelf:
    """What attention sees as a cache: it writes the new tokens, and answers all rows of the block."""

    def __init__(self, stores: tuple[Tensor, ...], write: Tensor):
        self.stores, self.write = stores, write

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        for store, new in zip(self.stores, (keys, values)):
            store.index_copy_(0, self.write, new[0].transpose(0, 1).reshape(len(self.write), -1))
        return self.stores


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, laid: tuple[Plan, int] | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query (1, heads, N, size); key, value: all rows of the block -> (1, N, heads, size)."""
    assert laid is not None
    plan, heads = laid
    how = How(heads, scaling, None, kwargs.get("softcap"), kwargs.get("s_aux"))
    return attended(plan, query[0].transpose(0, 1), key, value, how)[None], None


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
