"""Which rows an epoch shows, and in which order: a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class Mixed(Sampler[int]):
    """Rows of one or several sets, in batches of like length.

    lengths: per set, of each of its rows; the rows are numbered through all sets. An epoch has as many rows as all sets
    together, set i of n_i rows with a share that goes with n_i ** (1 / temperature): 1 shows every row once, a large
    one shows all sets alike. A set that gets more than its rows shows them in whole rounds, the rest is drawn without
    replacement. apart: no batch mixes sets; every set then gets whole batches.
    Batches are cut from pools of 16 batches sorted by length, and then shuffled themselves. batch: rows of a step; one
    that is accumulated from several batches shows the same rows as one of a large batch.
    """

    def __init__(
        self, lengths: Sequence[Sequence[int]], batch: int, seed: int, temperature: float = 1.0, apart: bool = False
    ):
        self.batch, self.seed, self.epoch, self.apart = batch, seed, 0, apart
        self.lengths = [n for one in lengths for n in one]
        self.sizes = [len(one) for one in lengths]
        unit = batch if apart else 1
        units = -(-sum(self.sizes) // unit)
        self.quotas = [unit * n for n in shares(self.sizes, units, temperature)]

    def __len__(self) -> int:
        return sum(self.quotas)

    def __iter__(self) -> Iterator[int]:
        g = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        sets, first = [], 0
        for size, quota in zip(self.sizes, self.quotas):
            rounds, rest = divmod(quota, size)
            drawn = torch.randperm(size, generator=g)[:rest].tolist() if rest else []
            sets.append([first + i for i in [*range(size)] * rounds + drawn])
            first += size
        batches, rest = [], []
        for rows in sets if self.apart else [[i for one in sets for i in one]]:
            order = [rows[i] for i in torch.randperm(len(rows), generator=g).tolist()]
            wide = 16 * self.batch
            order = [
                i for a in range(0, len(order), wide)
                for i in sorted(order[a : a + wide], key=lambda i: self.lengths[i])
            ]  # fmt: skip
            whole = len(order) // self.batch * self.batch
            batches += [order[a : a + self.batch] for a in range(0, whole, self.batch)]
            rest += order[whole:]
        for b in torch.randperm(len(batches), generator=g).tolist():
            yield from batches[b]
        yield from rest


def shares(sizes: Sequence[int], total: int, temperature: float) -> list[int]:
    """`total` dealt out by size ** (1 / temperature), at least one each: by largest remainder, the first of equals."""
    largest = max(sizes)
    weights = [(n / largest) ** (1 / temperature) for n in sizes]
    exact = [total * w / sum(weights) for w in weights]
    out = [max(1, int(e + 1e-9)) for e in exact]
    order = sorted(range(len(out)), key=lambda i: (out[i] - exact[i], i))
    for i in order[: max(0, total - sum(out))]:
        out[i] += 1
    return out
