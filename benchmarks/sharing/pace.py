"""What a pass of each cell costs beside the original: processor time, in turn with it, and the bytes of the cache."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from commonweight.builder import anatomy
from commonweight.share.cost import cost, original

from .bases import Base
from .fit import layout_of
from .run import Cell, made

ROUNDS, LENGTH, TOKENS = 7, 128, 8


def paces(base: Base, model: Any, cell: Cell) -> dict[str, float]:
    """Shares of the original's. A language model writes tokens after `LENGTH` others; an encoder reads `LENGTH`."""
    about = anatomy(model)
    small = made(cell, model, about, base.rows()).eval()
    seconds(small)
    seconds(model)
    out = {"pace": round(statistics.median(seconds(small) / seconds(model) for _ in range(ROUNDS)), 3)}
    whole = cost(model, about, "original", original(about)).cache
    if cell.kind == "share" and whole and (layout := layout_of(about, cell.name, cell.options)) is not None:
        out["cache"] = round(cost(model, about, cell.name, layout).cache / whole, 3)
    return out


@torch.no_grad()
def seconds(model: Any) -> float:
    """Of the processor, for one pass."""
    ids = torch.randint(1000, 2000, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    if model.get_output_embeddings() is None:
        start = time.process_time()
        model(input_ids=ids)
        return time.process_time() - start
    cache = model(input_ids=ids, use_cache=True).past_key_values
    start = time.process_time()
    for _ in range(TOKENS):
        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    return (time.process_time() - start) / TOKENS
