"""Attention of requests of many lengths in one step, each with its own keys and no others, not even masked ones.

The keys of all requests lie in one row, and masks would hide what is another's: the work would grow with the number of
requests, and one request's NaN become everybody's (0 * NaN). Here those with one query are padded to the longest, and
those with more are taken one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from .ahead import Rows
from .stacks import Room


class _Place(threading.local):
    """Where each layer's keys and values are laid side by side, one layer after the other."""

    def __init__(self) -> None:
        self.room = Room()


_PLACE = _Place()


@dataclass(frozen=True)
class Singles:
    """Requests of a step that have one query each. at (B,): their queries, None for all in order; index (B * L,): the
    rows of their keys, each request's padded with its own last one; mask (B, 1, 1, L): which of these count; None: all;
    bias: the same, 0 and -inf."""

    at: Tensor | None
    index: Tensor
    mask: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Where the requests of a step lie. spans: (first query, end, rows of its keys) of each request with more than one
    query; singles: the others, all together, or those with about as many keys."""

    spans: Sequence[tuple[int, int, Tensor | slice]]
    singles: Sequence[Singles]


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
        return Plan(spans, [])
    lengths = torch.tensor([r[3] - r[2] for r in ones])
    starts = torch.tensor([r[2] for r in ones])
    at = torch.tensor([r[0] for r in ones]) if spans else None
    return Plan(spans, [singles(at, starts, lengths, device, read, dtype)])


def singles(
    at: Tensor | None, starts: Tensor, lengths: Tensor, device: torch.device, read: Tensor | None, dtype: torch.dtype
) -> Singles:
    """starts, lengths (B,): of the keys of each request. Others as `plan` has them."""
    place = torch.arange(int(lengths.max()))
    index = (starts[:, None] + torch.minimum(place[None], lengths[:, None] - 1)).view(-1).to(device)
    mask = None if bool((lengths == lengths[0]).all()) else (place[None] < lengths[:, None])[:, None, None].to(device)
    bias = None if mask is None else torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, -torch.inf)
    at = None if at is None else at.to(device)
    return Singles(at, index if read is None else read.index_select(0, index), mask, bias)


@dataclass(frozen=True)
class How:
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


def attended(found: Plan, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
    """q (T, heads, d), k and v rows of kv heads * d -> (T, heads, d)."""
    out, heads = None, how.heads
    for some in found.singles:
        qs = q if some.at is None else q.index_select(0, some.at)
        b = len(qs)
        ks, vs = (_taken(n, x, some.index).view(b, -1, heads, x.shape[1] // heads) for n, x in (("k", k), ("v", v)))
        ks, vs, mask, bias = _behind(ks.transpose(1, 2), vs.transpose(1, 2), some, how)
        got = _one(qs.reshape(b, heads, q.shape[1] // heads, -1), ks, vs, mask, bias, how).reshape(b, q.shape[1], -1)
        if some.at is None:
            return got
        out = q.new_empty(len(q), q.shape[1], got.shape[-1]) if out is None else out
        out.index_copy_(0, some.at, got)
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
    place = _PLACE.room(name, (len(rows), x.shape[1]), x.dtype) if x.device.type == "cpu" else None
    return torch.index_select(x, 0, rows, out=place) if place is not None else x.index_select(0, rows)


def _behind(k: Tensor, v: Tensor, found: Singles, how: How) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(keys, values, mask, bias) with what stands in front of each request; k and v (B, kv heads, L, d)."""
    if how.ahead is None:
        return k, v, found.mask, found.bias
    fk, fv, see = how.ahead
    if len(fk) > 1 and found.at is not None:
        fk, fv = (x.index_select(0, found.at) for x in (fk, fv))
        see = None if see is None else see.index_select(0, found.at)
    k, v = (torch.cat([f.expand(len(x), -1, -1, -1), x], 2) for f, x in ((fk, k), (fv, v)))
    if see is None and found.mask is None:
        return k, v, None, None
    sees = [k.new_ones(m, dtype=torch.bool) for m in ((len(k), fk.shape[2]), (len(k), k.shape[2] - fk.shape[2]))]
    sees[0] = sees[0] if see is None else see
    sees[1] = sees[1] if found.mask is None else found.mask[:, 0, 0]
    mask = torch.cat(sees, 1)[:, None, None]
    return k, v, mask, torch.zeros(mask.shape, dtype=k.dtype, device=k.device).masked_fill_(~mask, -torch.inf)


def _one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, how: How) -> Tensor:
    """One query a request: q (B, kv heads, groups, d), k and v (B, kv heads, L, d)."""
    if how.softcap is None and how.sinks is None:
        return sdpa(q, k, v, attn_mask=bias, scale=how.scaling)
    sinks = None if how.sinks is None else how.sinks.view(1, how.heads, -1, 1)
    return plain(q, k, v, mask, how, sinks)


def _many(q: Tensor, k: Tensor, v: Tensor, how: How, ahead: int = 0) -> Tensor:
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
    return plain(q, k, v, mask, how, sinks)[0].transpose(0, 1)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, how: How, sinks: Tensor | None) -> Tensor:
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
