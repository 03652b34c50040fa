"""Logits of a language model where they are scored, and nowhere else.

A head of 50,000 words makes 200 kB of every token; most of it is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import CommonweightError
from ...host.embedded import IGNORE
from ...host.picked import marked

PIECE = 1 << 23  # logits at a time when measuring: 32 MB in float32


def places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(where, what) of what is scored, each (B, S): S is the most that a row of labels (B, T) has.

    where: positions whose logits count, of 0 to T - 2; what: the token that each predicts. A row with fewer is filled
    up with others, whose `what` is IGNORE.
    """
    following = labels[:, 1:]
    scored = following != IGNORE
    most = max(1, int(scored.sum(1).max())) if following.numel() else 0
    where = (~scored).byte().argsort(dim=1, stable=True)[:, :most]
    return where, following.gather(1, where)


def loss(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Summed cross entropy of what is scored, differentiable. Memory: B S V logits and their copy in float32.

    Rows stay rows, so that a mixed route finds its readers at the head too.
    """
    found, what = logits(model, inputs, labels)
    return F.cross_entropy(found.flatten(0, 1).float(), what.flatten(), ignore_index=IGNORE, reduction="sum")


def logits(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits where they are scored, (B, S, V); the tokens that they predict, (B, S))."""
    where, what = places(labels)
    length = labels.shape[1]
    with _reading(model, length, where) as seen:
        found = model(**inputs, use_cache=False).logits
    return found if seen else _at(found[:, -length:], where), what


class Measured(NamedTuple):
    """Of scored tokens: the summed cross entropy, and how many were the likeliest."""

    nll: float
    right: int

    @classmethod
    def of(cls, logits: Tensor, what: Tensor) -> Measured:
        flat = logits.flatten(0, 1).float()
        nll = F.cross_entropy(flat, what.flatten(), ignore_index=IGNORE, reduction="sum").item()
        return cls(nll, int((logits.argmax(-1) == what).sum()))  # IGNORE is no token

    @classmethod
    def sum(cls, parts: Iterable[Measured]) -> Measured:
        found = list(parts)
        return cls(sum(p.nll for p in found), sum(p.right for p in found))


@torch.no_grad()
def measure(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Measured:
    """The same number, and how many tokens were right.

    Memory: `PIECE` logits; of a model that does more to logits than its head does (scales or caps
    them), those of one row at least, and as many more forward passes.

    Whether it does is seen from the logits of each row's last position, which are made both ways.
    """
    where, what = places(labels)
    length = labels.shape[1]
    with _reading(model, length, labels.new_full((len(labels), 1), length - 1)) as seen:
        last = model(**inputs, use_cache=False).logits
    head = output_layer(model)
    if len(seen) == 1 and head is not None:
        hidden = seen[0]
        ends = hidden[:, -1:].contiguous()  # torch multiplies a slice row by row, in bfloat16 hundreds of times slower
        if _says(head, ends, last):
            step = max(1, PIECE // (last.shape[0] * last.shape[-1]))
            hidden = hidden[:, -length:]
            some = [slice(start, start + step) for start in range(0, where.shape[1], step)]
            return Measured.sum(Measured.of(head(_at(hidden, where[:, s])), what[:, s]) for s in some)
    elif not seen:  # no head that could be fed less: these are all logits
        return Measured.of(_at(last[:, -length:], where), what)
    rows = max(1, PIECE // (where.shape[1] * last.shape[-1]))
    parts = [slice(i, i + rows) for i in range(0, len(labels), rows)]
    return Measured.sum(Measured.of(*logits(model, {k: v[p] for k, v in inputs.items()}, labels[p])) for p in parts)


def _says(head: nn.Module, hidden: Tensor, scores: Tensor) -> bool:
    """Whether the head by itself makes these scores. A tenant's may want more than it is given, and says so."""
    try:
        return torch.equal(head(hidden).to(scores.dtype), scores)
    except CommonweightError:
        return False


def output_layer(model: nn.Module) -> nn.Module | None:
    """The module that makes logits of hidden states; None of a model that does not say."""
    try:
        found = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


@contextmanager
def _reading(model: nn.Module, length: int, where: Tensor) -> Iterator[list[Tensor]]:
    """Within it the head is fed the hidden states at `where` (B, S) alone, of the last `length`; the list gets what it
    would have been fed, (B, T or more, d)."""
    seen: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[1] < length:
            return None
        seen.append(x)
        # Methods that put tokens in front lengthen the sequence; the labels belong to its end.
        at = where + x.shape[1] - length
        return (marked(_at(x, at), at), *args[1:])

    head = output_layer(model)
    # in front of the sites' own hooks: what they do to the input is done to what is picked
    handle = None if head is None else head.register_forward_pre_hook(before, prepend=True)
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


def _at(x: Tensor, where: Tensor) -> Tensor:
    """(B, S, d) of (B, T, d)."""
    return x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))
