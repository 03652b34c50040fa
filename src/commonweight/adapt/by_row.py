"""Attention over packed rows on a CPU: row by row, where a mask would make every row pay for the whole sequence.

transformers tells SDPA by a mask (B, 1, T, T) who sees whom, and the kernel computes all T * T products. Here the rows
are read from that very mask, and each runs alone with its own n * n / 2. A mask that is anything else than rows one
after the other, causal within (a window, chunks, a prefix), is given to SDPA as it is.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from ..host.names import unwrapped
from ..host.weights import device_of

NAME = "commonweight_rows"
Row = tuple[int, bool]


class _Seen(threading.local):
    """The mask that was read last; all layers of a pass are given the same."""

    mask: weakref.ref[Tensor] | None = None
    rows: list[Row] | None = None


_SEEN = _Seen()


@contextmanager
def by_row(model: nn.Module) -> Iterator[None]:
    """Within it the model's attention is `attend`, if it is SDPA on a CPU else."""
    inner: Any = unwrapped(model)
    config = getattr(inner, "config", None)
    if (
        device_of(inner).type != "cpu"
        or getattr(config, "_attn_implementation", None) != "sdpa"
        or getattr(config, "sub_configs", None)
        or not inner._can_set_attn_implementation()
    ):
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    inner.set_attn_implementation(NAME)
    try:
        yield
    finally:
        inner.set_attn_implementation("sdpa")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, heads, T, d), key and value (B, kv heads, T, d) -> (B, T, heads, d)."""
    other = dropout or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    rows = None if other or attention_mask is None or query.shape[2] != key.shape[2] else seen(attention_mask)
    if rows is None or kwargs.get("s_aux") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    batch, heads, length, _ = query.shape
    groups, sizes = heads // key.shape[1], [n for n, _ in rows]

    def split(
        t: Tensor,
    ) -> tuple[Tensor, ...]:  # its gradient is laid together once, that of slices at full length each
        return t.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2).split(sizes, 2)

    out = []
    for (_, alone), q, k, v in zip(rows, split(query), split(key), split(value)):
        if alone:
            y = v.repeat_interleave(groups, 1)
        else:
            y = sdpa(q, k, v, is_causal=True, scale=scaling, enable_gqa=groups > 1)
        out.append(y.transpose(1, 2))
    return torch.cat(out, 1).view(batch, length, heads, -1), None


def seen(mask: Tensor) -> list[Row] | None:
    """`rows_of`, once for all layers of a pass."""
    if _SEEN.mask is None or _SEEN.mask() is not mask:
        _SEEN.mask, _SEEN.rows = weakref.ref(mask), rows_of(mask)
    return _SEEN.rows


def rows_of(mask: Tensor) -> list[Row] | None:
    """(tokens, whether each of them is a row of its own) of every row of all sequences, one after the other.

    mask: (B, 1, T, T), True where a query sees a key. None where it is not rows one after the other, causal within.
    Cost: B * T * T comparisons.
    """
    if mask.dtype is not torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] != mask.shape[3]:
        return None
    at, sees = torch.arange(mask.shape[2], device=mask.device), mask[:, 0]
    first = sees.byte().argmax(-1)  # (B, T)
    begins = first == at
    if not torch.equal(first, torch.where(begins, at, 0).cummax(-1).values):
        return None
    if not torch.equal(sees, (at >= first[..., None]) & (at <= at[:, None])):
        return None
    out: list[Row] = []
    for line in begins.tolist():
        starts = [i for i, begin in enumerate(line) if begin]
        sizes = [b - a for a, b in zip(starts, [*starts[1:], len(line)])]
        for alone, group in groupby(sizes, lambda n: n == 1):
            some = [(n, False) for n in group]
            out += [(len(some), True)] if alone else some
    return out
