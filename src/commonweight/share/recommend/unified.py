"""Unified Embedding: one table that all features read, each by hashes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...address import Hashed
from ...address.hashed import hashed
from ...core import CommonweightError, Rng


class Feature(NamedTuple):
    """size: how many values there are, 0 to size - 1. chunks: rows that a value reads, laid end to end."""

    size: int
    chunks: int = 1


class Unified(nn.Module):
    """{feature: values (*s)} -> {feature: (*s, chunks c)}, every row of every feature from n tables of M rows.

    Chunk number k of all chunks, in the order of the features, reads row hash(value, salt k) mod M of table k mod n. No
    two chunks have one salt; there is no sign, and nothing that belongs to a feature alone. fold "stable": the rows of
    all values of all chunks of a table are dealt by permutations of it, so that no two rows differ by more than one in
    their readers; where M is as large as they are many, each has a row of its own. "hash": by the hash alone, for
    values of any size.
    Shapes: table (n, M, c). Parameters: n M c. Cost: one row a chunk; stable holds 4 bytes for each value of a chunk.
    Source: arXiv 2305.12102, its abstract, and UnifiedEmbedding of TensorFlow Recommenders. Differs: the hash is
    SplitMix64 with the seed 2^20 seed + k (theirs SipHash), `address.hashed` has values of it; "stable" is ours, as
    `share`'s method `hashed` has it; the table begins with N(0, 1 / c).
    Raises: CommonweightError for no features, and for values outside of a feature with "stable".
    """

    def __init__(
        self, features: Mapping[str, Feature], rows: int, width: int, *, tables: int = 1,
        fold: Literal["hash", "stable"] = "hash", seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if not features or min(rows, width, tables, *(min(f) for f in features.values())) < 1:
            raise CommonweightError(
                f"{len(features)} features, {rows} rows, width {width}, {tables} tables; wanted at least 1 of each"
            )
        self.features, self.seed = dict(features), seed
        self.table = nn.Parameter(Rng(seed, "table").normal((tables, rows, width), width**-0.5))
        self.chunks: dict[str, list[int]] = {}
        ends, total = [0] * tables, 0
        for name, feature in self.features.items():
            self.chunks[name] = list(range(total, total + feature.chunks))
            total += feature.chunks
            for k in self.chunks[name] if fold == "stable" else ():
                t = k % tables
                whole = Hashed(ends[t] * width, (feature.size, width), rows * width, width, seed + t)
                self.register_buffer(f"rows{k}", whole.places(torch.device("cpu"))[0], persistent=False)
                ends[t] += feature.size

    def rows(self, chunk: int, values: Tensor) -> Tensor:
        """The rows that values read as that chunk, in table chunk mod n."""
        if (dealt := getattr(self, f"rows{chunk}", None)) is not None:
            return dealt[values].long()
        return (hashed(values, (self.seed << 20) + chunk) >> 1).remainder(self.table.shape[1])

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        n, out = len(self.table), {}
        for name, chunks in self.chunks.items():
            at = values[name]
            out[name] = torch.cat([self.table[k % n][self.rows(k, at)] for k in chunks], -1)
        return out

    @property
    def widths(self) -> dict[str, int]:
        return {name: len(chunks) * self.table.shape[2] for name, chunks in self.chunks.items()}
