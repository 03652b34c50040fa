"""Trained entries of the vocabulary: some rows of the embedding, and of the head where it is the same weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Entries
from ...core import CommonweightError, Plan, Pool, Read, Rng, Site, Source, Use, Values, config, option, serial
from ..registry import method

LAST = 8  # entries that are trained where none are named


@config
class Tokens:
    tokens: tuple[int, ...] = option(
        (), "numbers of the entries that are trained; none: the last 8, where added tokens stand"
    )

    def check(self) -> str | None:
        return wrong_tokens(self.tokens)


def wrong_tokens(tokens: Sequence[int]) -> str | None:
    if any(t < 0 for t in tokens) or len(set(tokens)) != len(tokens):
        return f"tokens={tuple(tokens)}; wanted numbers of entries, 0 or more, each once"
    return None


@serial
@dataclass(frozen=True)
class OfBase:
    """The base's own entries, (n, d)."""

    site: str
    ids: tuple[int, ...]
    of_head: bool = False
    derived: ClassVar[bool] = True

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        w = base.weight(self.site)
        rows = torch.tensor(self.ids, device=w.device)
        return (w[rows] if self.of_head else w[:, rows].T).clone()


def entries(s: Site, tokens: Sequence[int]) -> tuple[dict[str, Pool], Use]:
    """The pools and the use of trained entries at one site: a table of embeddings, or a head."""
    head = s.kind != "embedding"
    size, width = (s.out, s.inp) if head else (s.inp, s.out)
    tokens = tokens or range(max(0, size - LAST), size)
    if max(tokens) >= size:
        raise CommonweightError(
            f"tokens: {s.name} has the entries 0 to {size - 1}; tokens={max(tokens)} names one beyond them: "
            "add entries first, with host.resize_vocabulary(n)"
        )
    pools = {
        f"{s.name}.rows": Pool((len(tokens), width), OfBase(s.name, tuple(tokens), head)),
        f"{s.name}.ids": Pool((len(tokens),), Values(tuple(tokens)), train=False, save=False, dtype="int64"),
    }
    return pools, Use(s.name, Entries(head), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in ("rows", "ids")})


@method(
    "tokens",
    Tokens,
    paper="PEFT's trainable tokens, https://huggingface.co/docs/peft/package_reference/trainable_tokens",
    formula="n d for n entries of width d",
    kinds=("embedding",),
    named=("linear",),
    at="tokens",
    lr=1e-3,
    size=(),
)
def plan(sites: Sequence[Site], config: Tokens) -> Plan:
    """E'[i] = row i of the tenant for every i in tokens; the other entries are the base's. Rows start as the base's.

    Shapes: rows (n, d), ids (n,). Linear in: rows. Cost: T n comparisons; at a head T n d products.
    By default at the table of input tokens, and at a head that is tied to it; other tables and heads by a pattern.
    Source: PEFT 0.21. Differs: in a mixed batch each row of the batch has entries of its own. Added tokens: resize the
    model first; whatever the base has in the new rows, the tenant's are its own.
    Raises: for an entry that is not there.
    """
    pools, uses = {}, []
    sizes = {s.inp for s in sites if s.kind == "embedding"}
    for s in (s for s in sites if s.kind == "embedding" or not sizes or s.out in sizes):
        mine, use = entries(s, config.tokens)
        pools |= mine
        uses.append(use)
    return Plan(pools, tuple(uses))
