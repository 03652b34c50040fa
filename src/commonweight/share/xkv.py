"""xKV: a cache in which neighbouring layers' keys and values of a prompt lie in one subspace."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from ..builder.dissect import stack
from ..core import CommonweightError

Turn = Callable[[Tensor, bool], Tensor]


class Sizes(NamedTuple):
    """Of a model's cache: layers, numbers that a layer holds of one token's keys (width), bytes of a number."""

    layers: int
    width: int
    itemsize: int


class Part:
    """Keys, or values, of one prompt in the layers of a group: basis (B, T, r), common, and (B, r, width) a layer."""

    def __init__(self, rank: int | None):
        self.rank = rank
        self.basis: Tensor | None = None
        self.maps: list[Tensor] = []

    def split(self, rows: list[Tensor]) -> bool:
        """Takes rows (B, T, width) of each layer, unless that would take as much room as they do."""
        x = torch.cat([r.float() for r in rows], -1)
        r = held(self.rank, *x.shape[1:])
        if r is None:
            return False
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        like = rows[0].dtype
        self.basis = (u[..., :r] * s[:, None, :r]).to(like).contiguous()
        self.maps = [m.contiguous() for m in v[:, :r].to(like).split([w.shape[-1] for w in rows], -1)]
        return True

    def tensors(self) -> list[Tensor]:
        return [] if self.basis is None else [self.basis, *self.maps]

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.basis is not None:
            self.basis, self.maps = change(self.basis), [change(m) for m in self.maps]


def held(rank: int | None, length: int, width: int) -> int | None:
    """The rank in which (length, width) numbers are held; None: as they are, since factors would be no smaller."""
    r = min(rank or length, length, width)
    return r if r * (length + width) < length * width else None


class Group:
    """Layers whose keys have one basis, and whose values have another."""

    def __init__(self, size: int, rank_k: int | None, rank_v: int | None, turn: Turn | None):
        self.size, self.turn = size, turn
        self.layers: list[Layer] = []
        self.k, self.v = Part(rank_k), Part(rank_v)

    def seen(self) -> None:
        """Called when the last of the layers has the prompt."""
        if not all(layer.is_initialized for layer in self.layers):
            return
        for part, name in ((self.k, "keys"), (self.v, "values")):
            turn = self.turn if part is self.k else None
            whole = [getattr(layer, name) for layer in self.layers]
            rows = [w.float() if turn is None else turn(w.float(), True) for w in whole]
            flat = [r.transpose(1, 2).flatten(2).to(w.dtype) for r, w in zip(rows, whole)]
            if part.split(flat):
                for layer, w in zip(self.layers, whole):
                    setattr(layer, name, w[:, :, :0])

    def prompt(self, part: Part, at: int, heads: int) -> Tensor | None:
        """(B, heads, T, d) of one layer, put together."""
        if part.basis is None:
            return None
        x = (part.basis @ part.maps[at]).unflatten(-1, (heads, -1)).transpose(1, 2)
        return x if part is self.v or self.turn is None else self.turn(x, False)


class Layer(DynamicLayer):
    """One layer's keys and values: the prompt's in its group, later tokens as they are."""

    def __init__(self, group: Group):
        super().__init__()
        self.group, self.at = group, len(group.layers)
        group.layers.append(self)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        first = not self.is_initialized
        super().update(key_states, value_states)
        out = self.whole("keys"), self.whole("values")
        if first and self.at == self.group.size - 1:
            self.group.seen()
        return out

    def whole(self, name: str) -> Tensor:
        tail: Tensor = getattr(self, name)
        before = self.group.prompt(self.group.k if name == "keys" else self.group.v, self.at, tail.shape[1])
        return tail if before is None else torch.cat([before, tail], 2)

    def get_seq_length(self) -> int:
        """Of keys; values may be held otherwise, but are as many."""
        basis = self.group.k.basis
        return super().get_seq_length() + (0 if basis is None or not self.is_initialized else basis.shape[1])

    def reset(self) -> None:
        super().reset()
        for part in (self.group.k, self.group.v):
            part.basis, part.maps = None, []

    def crop(self, tokens_to_remove: int) -> None:
        """Later tokens first, then those of the prompt."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): wanted a negative number, of tokens that go")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        last = self.at == self.group.size - 1  # what is common is cut once
        for name, part in (("keys", self.group.k), ("values", self.group.v)):
            tail: Tensor = getattr(self, name)
            go = min(-tokens_to_remove, tail.shape[2])
            setattr(self, name, tail[:, :, : tail.shape[2] - go])
            if last and part.basis is not None and -tokens_to_remove > go:
                part.basis = part.basis[:, : part.basis.shape[1] + tokens_to_remove + go]

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)  # type: ignore[arg-type]
            if self.at == self.group.size - 1:
                self.group.k.each(change)
                self.group.v.each(change)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda t: t[indices])


class XKV(Cache):
    """A cache for ``generate(past_key_values=XKV(model))`` and for calls of a model.

    After the prompt has run through the last layer of a group, the group's keys before RoPE, side by side (T, G w), are
    replaced by the best approximation of rank rank_k, for each row of the batch; values likewise with rank_v. Held are
    r (T + G w) numbers in the place of T G w, where that is less; w = key-value heads times their size. What the prompt
    itself computes is exact; tokens after it read the approximation, and are held as they are.
    group: layers G that share a basis. rank None: full, so everything is held as it is. Cost: one SVD of (T, G w) for
    each group and row, and 2 T r w products for each layer of each later token.
    Source: xKV, arXiv 2503.18893; code abdelfattah-lab/xKV. Differs: theirs multiplies the factors out again and keeps
    the product, here the factors alone are kept. Padding is part of the subspace, as there. A prompt that comes in
    several pieces has its first piece shared, the others are held as they are.
    Raises: CommonweightError for sliding windows, caches of other kinds, and RoPE that depends on the length.
    """

    def __init__(self, model: nn.Module, group: int = 4, rank_k: int | None = 512, rank_v: int | None = 768):
        depth, turn = sizes(model).layers, rope(model)
        if group < 1 or min(rank_k or 1, rank_v or 1) < 1:
            raise CommonweightError(f"group={group}, rank_k={rank_k}, rank_v={rank_v}; wanted numbers of at least 1")
        groups = [Group(min(group, depth - at), rank_k, rank_v, turn) for at in range(0, depth, group)]
        super().__init__(layers=[Layer(groups[at // group]) for at in range(depth)])
        self.groups = groups

    @property
    def nbytes(self) -> int:
        """Of all that is held now."""
        own = [t for layer in self.layers for t in (layer.keys, layer.values) if t is not None]  # type: ignore[union-attr]
        common = [t for g in self.groups for part in (g.k, g.v) for t in part.tensors()]
        return sum(t.numel() * t.element_size() for t in (*own, *common))


def plan(
    model: nn.Module, length: int, group: int = 4, rank_k: int | None = 512, rank_v: int | None = 768
) -> tuple[int, int]:
    """(bytes of XKV, bytes of an ordinary cache) for one prompt of `length` tokens; nothing runs."""
    about = sizes(model)
    total = 0
    for at in range(0, about.layers, group):
        width = min(group, about.layers - at) * about.width
        for rank in (rank_k, rank_v):
            r = held(rank, length, width)
            total += length * width if r is None else r * (length + width)
    return total * about.itemsize, 2 * about.layers * length * about.width * about.itemsize


def sizes(model: nn.Module) -> Sizes:
    """Raises: CommonweightError for a cache that is not keys and values of every token in every layer."""
    config: Any = model.config
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(text, "sliding_window", None) and not getattr(text, "layer_types", None):
        kinds = {"sliding_attention"}
    if any(hasattr(m, "walk") for m in model.modules()):
        kinds = {"tokens that skip blocks"}
    if kinds or hasattr(text, "kv_lora_rank"):
        what = ", ".join(sorted(kinds)) or "latent attention"
        raise CommonweightError(f"{type(model).__name__} has {what}; xKV takes keys and values of every token")
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv = getattr(text, "num_key_value_heads", None) or heads
    number = next(model.parameters()).element_size()
    return Sizes(text.num_hidden_layers, kv * size, number)


def rope(model: nn.Module) -> Turn | None:
    """(keys (B, heads, T, d) of positions 0 to T - 1, back) -> with the rotation, or without it; None: there is none.

    A row whose positions begin elsewhere gets one more rotation for all of its tokens, which no approximation feels.
    """
    turner: Any = next((m for n, m in model.named_modules() if n.rpartition(".")[2] == "rotary_emb"), None)
    if turner is None:
        return None
    blocks: Any = model.get_submodule(stack(model))
    homes = [sys.modules[k.__module__] for k in type(blocks[0]).__mro__]
    apply: Any = next((f for h in homes if (f := getattr(h, "apply_rotary_pos_emb", None)) is not None), None)
    kind = getattr(turner, "rope_type", "default")
    if apply is None or "layer_type" in inspect.signature(turner.forward).parameters:
        raise CommonweightError(f"{type(model).__name__}: its RoPE is not one for all layers; xKV needs that")
    if kind in ("dynamic", "longrope"):
        raise CommonweightError(
            f"{type(model).__name__}: its RoPE ({kind}) depends on the length; xKV needs a fixed one"
        )
    scale = float(getattr(turner, "attention_scaling", 1.0))

    @torch.no_grad()
    def turn(keys: Tensor, back: bool) -> Tensor:
        at = torch.arange(keys.shape[2], device=keys.device)[None]
        cos, sin = turner(keys[:, 0], at)
        _, out = apply(keys, keys, cos, -sin if back else sin)
        return out / scale**2 if back else out

    return turn
