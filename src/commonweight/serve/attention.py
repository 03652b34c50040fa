"""Attention over the paged cache in which each request sees its own keys and no others, not even masked ones.

transformers' own path for a CPU lays the keys of all requests into one row and masks what is another's: the work grows
with the number of requests, and one request's NaN becomes everybody's (0 * NaN). Here the steps of one token a request
are padded to the longest, and prompts are taken one by one. Registered by name in the public AttentionInterface; where
the model is called without the engine's cache, it is transformers' sdpa.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from ..host.ahead import Rows
from ..host.stacks import Room

NAME = "commonweight_paged"


class _Step(threading.local):
    """The step that this thread runs; plans: kind of layer -> how its requests' keys lie in this step."""

    plans: dict[str, Plan] | None = None

    def __init__(self) -> None:
        self.room = Room()  # where each layer's keys and values are laid side by side, one layer after the other


STEP = _Step()


@dataclass(frozen=True)
class Plan:
    """Where the requests of a step lie. spans: (first query, end, rows of its keys) of each request with more than one
    query; singles: the queries of the others, None for all in order; index (B * L,): the rows of their keys, each
    request's padded with its own last one; mask (B, 1, 1, L): which of these count; bias: the same, 0 and -inf."""

    spans: Sequence[tuple[int, int, Tensor | slice]]
    singles: Tensor | None
    index: Tensor | None
    mask: Tensor | None
    bias: Tensor | None


def plan(
    queries: Sequence[int],
    keys: Sequence[int],
    device: torch.device,
    read: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """queries, keys: cumulative lengths (requests + 1). read: the row of each key; None: they lie in order. dtype: of
    the bias, which is what the fused kernel would make of a mask at each layer."""
    rows = list(zip(queries, queries[1:], keys, keys[1:]))
    ones = [r for r in rows if r[1] - r[0] == 1]
    spans = [(q, e, slice(k, m) if read is None else read[k:m]) for q, e, k, m in rows if e - q > 1]
    if not ones:
        return Plan(spans, None, None, None, None)
    lengths = torch.tensor([r[3] - r[2] for r in ones])
    starts = torch.tensor([r[2] for r in ones])
    at = torch.arange(int(lengths.max()))
    index = (starts[:, None] + torch.minimum(at[None], lengths[:, None] - 1)).view(-1).to(device)
    mask = None if bool((lengths == lengths[0]).all()) else (at[None] < lengths[:, None])[:, None, None].to(device)
    singles = torch.tensor([r[0] for r in ones], device=device) if spans else None
    bias = None if mask is None else torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, -torch.inf)
    return Plan(spans, singles, index if read is None else read.index_select(0, index), mask, bias)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, T, d), key and value (1, kv heads, T, d) -> (1, T, heads, d)."""
    if cache is None or STEP.plans is None:
        return _elsewhere(module, query, key, value, attention_mask, scaling, dropout, kwargs)
    if kwargs.get("position_bias") is not None:
        raise ValueError("attention with a bias by position is not served")
    allocator = cache.layer_to_allocator[module.layer_idx]
    read, write = kwargs["read_index"][allocator.index], kwargs["write_index"][allocator.index]
    k, v, direct = _rows(allocator, module.layer_idx, key, value, read, write)
    found = STEP.plans.get(allocator.layer_type)
    if found is None:
        lengths = kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"][allocator.layer_type].tolist()
        found = STEP.plans[allocator.layer_type] = plan(*lengths, query.device, None if direct else read, query.dtype)
    window = getattr(allocator, "sliding_window", None)
    how = _How(key.shape[1], scaling, window, kwargs.get("softcap"), kwargs.get("s_aux"), kwargs.get("ahead"))
    return _attended(found, query[0].transpose(0, 1), k, v, how)[None], None


def _elsewhere(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, None]:
    """A call of the model beside the engine: transformers' sdpa, and what that lacks in plain products."""
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if softcap is None and sinks is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **kwargs)
    n, m = query.shape[2], key.shape[2]
    if mask is None:
        at = torch.arange(m, device=query.device)
        mask = at[None] <= torch.arange(m - n, m, device=query.device)[:, None]
    elif mask.dtype != torch.bool:
        mask = mask == 0
    groups = query.shape[1] // key.shape[1]
    how = _How(key.shape[1], scaling, None, softcap, sinks)
    k, v = (x.repeat_interleave(groups, 1) for x in (key, value))
    wide = None if sinks is None else sinks.view(1, -1, 1, 1)
    return _plain(query, k, v, mask[..., :m], how, wide).transpose(1, 2).contiguous(), None


def _rows(
    allocator: Any, layer: int, key: Tensor, value: Tensor, read: Tensor, write: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """(keys, values, whether they lie in order), a row of kv heads * d numbers a token; the new ones are in the cache
    from now on.

    In order: all requests' one after the other. Else the rows are the cache's own, which are taken out where they are
    used, once. Rows of heads * d numbers are read five times as quick as heads of d numbers.
    """
    width = key.shape[1] * key.shape[3]
    stores = [s.view(-1, width) for s in allocator._kv_token_views[layer]]
    new = [x[0].transpose(0, 1).reshape(-1, width).to(s.dtype) for x, s in zip((key, value), stores)]
    if getattr(allocator, "sliding_window", None) is None or not read.numel():
        for store, x in zip(stores, new):
            store.index_copy_(0, write, x)
        return (*stores, False) if read.numel() else (*new, True)  # type: ignore[return-value]
    out = [s.index_select(0, read) for s in stores]
    fresh = (read == allocator.sentinel_index).nonzero()[:, 0]  # the ring may take the place of what is still read
    for found, store, x in zip(out, stores, new):
        found.index_copy_(0, fresh, x)
        store.index_copy_(0, write, x)
    return out[0], out[1], True


@dataclass(frozen=True)
class _How:
    """heads: of keys. window: how many keys a query sees, itself included. ahead: what stands in front of each token's
    request, `host.ahead.Rows`, (T, heads, M, d) each, or (1, ...) where all have the same."""

    heads: int
    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    ahead: Rows | None = None

    def front(self, at: int) -> tuple[Tensor, Tensor, int] | None:
        """(keys, values, how many) in front of the request that has a token at this place; keys (m, heads, d)."""
        if self.ahead is None:
            return None
        k, v, see = self.ahead
        i = at if len(k) > 1 else 0
        m = k.shape[2] if see is None else int(see[i].sum())
        return (*(x[i, :, x.shape[2] - m :].transpose(0, 1) for x in (k, v)), m)  # type: ignore[return-value]


def _attended(found: Plan, q: Tensor, k: Tensor, v: Tensor, how: _How) -> Tensor:
    """q (T, heads, d), k and v rows of kv heads * d -> (T, heads, d)."""
    out, heads = None, how.heads
    if found.index is not None:
        qs = q if found.singles is None else q.index_select(0, found.singles)
        b = len(qs)
        ks, vs = (_taken(n, x, found.index).view(b, -1, heads, x.shape[1] // heads) for n, x in (("k", k), ("v", v)))
        ks, vs, mask, bias = _behind(ks.transpose(1, 2), vs.transpose(1, 2), found, how)
        got = _one(qs.reshape(b, heads, q.shape[1] // heads, -1), ks, vs, mask, bias, how).reshape(b, q.shape[1], -1)
        if found.singles is None:
            return got
        out = q.new_empty(len(q), q.shape[1], got.shape[-1])
        out.index_copy_(0, found.singles, got)
    for first, end, at in found.spans:
        kx, vx = (
            (x[at] if isinstance(at, slice) else _taken(n, x, at)).view(-1, heads, x.shape[1] // heads)
            for n, x in (("k", k), ("v", v))
        )
        more = 0
        if (front := how.front(first)) is not None:
            kx, vx, more = torch.cat([front[0], kx]), torch.cat([front[1], vx]), front[2]
        got = _many(q[first:end], kx, vx, how, more)
        if out is None:
            out = q.new_empty(len(q), q.shape[1], got.shape[-1])
        out[first:end] = got
    assert out is not None
    return out


def _taken(name: str, x: Tensor, rows: Tensor) -> Tensor:
    """Some rows of x, in memory that the next layer's write over: new memory would take longer than the copying."""
    place = STEP.room(name, (len(rows), x.shape[1]), x.dtype) if x.device.type == "cpu" else None
    return torch.index_select(x, 0, rows, out=place) if place is not None else x.index_select(0, rows)


def _behind(k: Tensor, v: Tensor, found: Plan, how: _How) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(keys, values, mask, bias) with what stands in front of each request; k and v (B, kv heads, L, d)."""
    if how.ahead is None:
        return k, v, found.mask, found.bias
    fk, fv, see = how.ahead
    if len(fk) > 1 and found.singles is not None:
        fk, fv = (x.index_select(0, found.singles) for x in (fk, fv))
        see = None if see is None else see.index_select(0, found.singles)
    k, v = (torch.cat([f.expand(len(x), -1, -1, -1), x], 2) for f, x in ((fk, k), (fv, v)))
    if see is None and found.mask is None:
        return k, v, None, None
    sees = [k.new_ones(m, dtype=torch.bool) for m in ((len(k), fk.shape[2]), (len(k), k.shape[2] - fk.shape[2]))]
    sees[0] = sees[0] if see is None else see
    sees[1] = sees[1] if found.mask is None else found.mask[:, 0, 0]
    mask = torch.cat(sees, 1)[:, None, None]
    return k, v, mask, torch.zeros(mask.shape, dtype=k.dtype, device=k.device).masked_fill_(~mask, -torch.inf)


def _one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, how: _How) -> Tensor:
    """One query a request: q (B, kv heads, groups, d), k and v (B, kv heads, L, d)."""
    if how.softcap is None and how.sinks is None:
        return sdpa(q, k, v, attn_mask=bias, scale=how.scaling)
    sinks = None if how.sinks is None else how.sinks.view(1, how.heads, -1, 1)
    return _plain(q, k, v, mask, how, sinks)


def _many(q: Tensor, k: Tensor, v: Tensor, how: _How, ahead: int = 0) -> Tensor:
    """The queries of one request, the last of its keys: q (n, heads, d), k and v (m, kv heads, d). ahead: so many of
    the keys stand in front of the request, and are seen past a window."""
    n, m = len(q), len(k)
    mask = None
    if n != m or (how.window is not None and how.window < m) or how.softcap or how.sinks is not None:
        at = torch.arange(m, device=q.device)
        last = torch.arange(m - n, m, device=q.device)[:, None]
        mask = at[None] <= last
        if how.window is not None:
            mask &= (at[None] > last - how.window) | (at[None] < ahead)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    if how.softcap is None and how.sinks is None:
        wide = q.shape[1] > how.heads
        return sdpa(q, k, v, attn_mask=mask, is_causal=mask is None, scale=how.scaling, enable_gqa=wide)[0].transpose(
            0, 1
        )
    k, v = (x.repeat_interleave(q.shape[1] // how.heads, 1) for x in (k, v))
    sinks = None if how.sinks is None else how.sinks.view(1, -1, 1, 1)
    return _plain(q, k, v, mask, how, sinks)[0].transpose(0, 1)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, how: _How, sinks: Tensor | None) -> Tensor:
    """With what no fused kernel has: scores bent by a tanh (Gemma 2), and a score that takes weight for nothing
    (gpt-oss); softmax in float32 as there."""
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if how.scaling is None else how.scaling)
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is None:
        return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v
    scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], -1)
    scores = scores - scores.amax(-1, keepdim=True)
    return torch.softmax(scores, -1, dtype=torch.float32)[..., :-1].to(q.dtype) @ v


def mask(*args: Any, **kwargs: Any) -> Any:
    """None in a step of the engine, where `attend` knows who sees what; else the mask that sdpa takes."""
    if STEP.plans is not None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, **kwargs)


def register() -> None:
    """Makes the name known to transformers. Doing it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
