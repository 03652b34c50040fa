"""The files that the result will have: which tensors in which, known to the byte before the first number is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ...core import library
from ..sources import safefile
from ..stream.work import Task
from .built import Built

SHARD = 5_000_000_000  # bytes, as transformers writes
EMPTY = "0" * 32  # stands in a header for the digest of the inputs, until it is known
Kind = tuple[torch.dtype, tuple[int, ...]]


class Shard(NamedTuple):
    """One file: its tensors in their order, and the bytes that it will have."""

    file: str
    tensors: dict[str, Kind]
    head: bytes
    size: int


def layout(tasks: Sequence[Task], most: int, metadata: Mapping[str, str]) -> list[Shard]:
    """Tensors by name into files of at most `most` bytes (a larger tensor has its own)."""
    groups: list[dict[str, Kind]] = [{}]
    used = 0
    for t in sorted(tasks, key=lambda t: t.at.name):
        n = t.numel * t.dtype.itemsize
        if groups[-1] and used + n > most:
            groups.append({})
            used = 0
        groups[-1][t.at.name] = (t.dtype, t.at.shape)
        used += n
    out = []
    for i, group in enumerate(groups, 1):
        # the widest numbers first, so that every tensor lies at a multiple of its own width
        ordered = dict(sorted(group.items(), key=lambda e: (-e[1][0].itemsize, e[0])))
        head = safefile.header(ordered, metadata)
        name = "model.safetensors" if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
        size = len(head) + sum(math.prod(s) * d.itemsize for d, s in ordered.values())
        out.append(Shard(name, ordered, head, size))
    return out


def index(shards: Sequence[Shard]) -> bytes:
    """The index that transformers reads where a model has several files."""
    total = sum(s.size - len(s.head) for s in shards)
    homes = {n: s.file for s in shards for n in s.tensors}
    body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
    return (json.dumps(body, indent=2) + "\n").encode()


def files(built: Built, most: int, mark: str = EMPTY) -> list[Shard]:
    """The files of weights as they will be, to the byte; another mark, of the same length, changes no size."""
    origin = json.dumps({"version": library(), "merge": mark, "inputs": EMPTY})
    return layout(built.tasks, most, {"format": "pt", "commonweight": origin})
