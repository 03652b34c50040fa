"""Attention over the paged cache in which each request sees its own keys and no others, not even masked ones.

In the place of transformers' own path for a CPU, which lays all requests into one row and masks (`host.paged`).
Registered by name in the public AttentionInterface; where the model is called without the engine's cache, it is
transformers' sdpa.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..host.paged import How, Plan, attended, plain, plan

NAME = "commonweight_paged"


class _Step(threading.local):
    """The step that this thread runs; plans: kind of layer -> how its requests' keys lie in this step."""

    plans: dict[str, Plan] | None = None


STEP = _Step()


def stepping() -> bool:
    """Whether this thread runs a step of an engine."""
    return STEP.plans is not None


@contextmanager
def aside() -> Iterator[None]:
    """Within it this thread's passes are no step: for texts that a step's tenants read by themselves, whose masks are
    transformers' own (sliding windows among them)."""
    before, STEP.plans = STEP.plans, None
    try:
        yield
    finally:
        STEP.plans = before


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
    how = How(key.shape[1], scaling, window, kwargs.get("softcap"), kwargs.get("s_aux"), kwargs.get("ahead"))
    return attended(found, query[0].transpose(0, 1), k, v, how)[None], None


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
    causal = kwargs.get("is_causal")
    if mask is None and (getattr(module, "is_causal", True) if causal is None else causal):
        at = torch.arange(m, device=query.device)
        mask = at[None] <= torch.arange(m - n, m, device=query.device)[:, None]
    elif mask is not None and mask.dtype != torch.bool:
        mask = mask == 0
    groups = query.shape[1] // key.shape[1]
    how = How(key.shape[1], scaling, None, softcap, sinks)
    k, v = (x.repeat_interleave(groups, 1) for x in (key, value))
    wide = None if sinks is None else sinks.view(1, -1, 1, 1)
    return plain(query, k, v, None if mask is None else mask[..., :m], how, wide).transpose(1, 2).contiguous(), None


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
