"""What a tenant changes of one weight, as a product of two factors."""

from __future__ import annotations

import torch

from ...bind import BiasShift
from ...formats.peft import low_rank
from ...formats.peft.low_rank import Low
from ..change import changed
from ..sites import Physical
from ..tenant import Entry


def low_of_one(at: Physical, entries: list[Entry], rank: int | None, tolerance: float) -> Low:
    """B A: exact where the uses have factors, else by truncated SVD, at most of `rank`."""
    with torch.no_grad():
        w, b = changed(at, entries)
        found = low_rank.truncated(w - at.weight.float(), rank, tolerance) if opaque(entries) else None
        if found is None:
            parts = [e for e in entries if not isinstance(e.bind, BiasShift)]
            found = low_rank.joined([(*e.bind.factors(**e.slots(None)), e.rows) for e in parts], w.shape[0])
            if rank is not None and found.A.shape[0] > rank:
                found = low_rank.truncated(found.B @ found.A, rank, tolerance)
        gained = None if b is None or at.bias is None else b - at.bias.float()
        return found if gained is None or not gained.any() else found._replace(bias=gained)


def opaque(entries: list[Entry]) -> bool:
    """Whether the change of the weight is no product of factors at hand."""
    changing = [e for e in entries if not isinstance(e.bind, BiasShift)]
    return not changing or any(getattr(e.bind, "factors", None) is None for e in changing)
