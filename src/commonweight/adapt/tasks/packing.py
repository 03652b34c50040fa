"""Rows side by side in one sequence: nothing is padded, and no row sees another.

Each row's positions begin at 0. From them, where no attention mask is given, transformers makes a mask that is block
by block (eager, SDPA, flex), or lengths of rows (flash attention). A model that does not read them so, a recurrent one
say, is refused: `sound` looks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...core import CommonweightError, counted
from ...host.weights import device_of
from .base import Example
from .scored import IGNORE


def packed(examples: Sequence[Example], room: int) -> list[Example]:
    """The rows in as few sequences of at most `room` tokens as best fit finds, the longest rows first.

    A row is never cut. Its first token is not scored, as it is not where it stands alone. Cost: n log n.
    """
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i]["input_ids"]), i))
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for i in order:
        n = len(examples[i]["input_ids"])
        at = bisect_left(free, (n, -1))
        left, k = free.pop(at) if at < len(free) else (room, len(bins))
        if k == len(bins):
            bins.append([])
        bins[k].append(i)
        if left > n:
            entry = (left - n, k)
            free.insert(bisect_left(free, entry), entry)
    return [_joined([examples[i] for i in sorted(one)]) for one in bins]


def _joined(rows: Sequence[Example]) -> Example:
    return {
        "input_ids": [t for r in rows for t in r["input_ids"]],
        "labels": [t for r in rows for t in (IGNORE, *r["labels"][1:])],
        "position_ids": [p for r in rows for p in range(len(r["input_ids"]))],
        "bytes": sum(r["bytes"] for r in rows),
    }


def told(sequences: Sequence[Example], room: int) -> str:
    tokens = sum(len(s["input_ids"]) for s in sequences)
    full = round(100 * tokens / (room * len(sequences)))
    return f"packed into {counted(len(sequences), 'sequence')} of at most {counted(room, 'token')}, {full} % full"


def real(positions: Tensor) -> Tensor:
    """How many tokens of packed sequences (B, T) are no padding: a row has two at least, padding stands at 0."""
    following = torch.nn.functional.pad(positions[:, 1:], (0, 1))
    return (positions > 0).sum() + ((positions == 0) & (following == 1)).sum()


def tokens_of(batch: Mapping[str, Tensor]) -> int:
    """How many are read of a batch, padding aside; of images 0, which have neither mask nor places."""
    if (mask := batch.get("attention_mask")) is not None:
        return int(mask.sum())
    return int(real(batch["position_ids"])) if "position_ids" in batch else 0


@torch.no_grad()
def sound(model: nn.Module) -> None:
    """Raises: CommonweightError where a row's logits are others in a packed sequence than alone.

    Cost: three forward passes of a few tokens. Call it under the route, in eval mode.
    """
    name, device = type(getattr(model, "base", model)).__name__, device_of(model)
    first, other, last = ([3, 4, 5, 6, 4, 3], [6, 3, 3, 5, 6, 4], [5, 3, 6, 4, 4, 5, 3])
    places = torch.tensor([[*range(len(first)), *range(len(last))]], device=device)

    def logits(*rows: list[int], **more: Tensor) -> Tensor:
        ids = torch.tensor([[t for r in rows for t in r]], device=device)
        return model(input_ids=ids, use_cache=False, **more).logits[0, -len(last) :].float()

    why = f"{name} cannot be trained on packed rows: "
    try:
        alone = logits(last, attention_mask=torch.ones(1, len(last), dtype=torch.long, device=device))
        pair = [logits(row, last, position_ids=places) for row in (first, other)]
    except TypeError as e:
        raise CommonweightError(f"{why}it takes no position_ids ({e}); leave out packing") from e
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    near, same = (2e-2, 2e-3) if half else (1e-4, 1e-6)  # same: of equal shapes, where only experts round anew
    size = alone.abs().max()
    if (pair[0] - pair[1]).abs().max() > same * size or any((p - alone).abs().max() > near * size for p in pair):
        raise CommonweightError(f"{why}a row sees the row before it; leave out packing")
