"""What the forms of a tenant make of a site's weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import CommonweightError
from .sites import Physical
from .tenant import Entry


def changed(at: Physical, entries: list[Entry]) -> tuple[Tensor, Tensor | None]:
    """(w', b') in float32, by the weight and bias forms, in order."""
    for entry in entries:  # first of all: a block has no weight to start from
        if getattr(entry.bind, "weight", None) is None:
            why = getattr(entry.bind, "unmerged", "")
            raise CommonweightError(
                f"{at.name}: {type(entry.bind).__name__} does not change a weight; it cannot be merged"
                + (f": {why}" if why else "")
            )
    w, b = at.weight.float(), at.bias
    b = None if b is None else b.float()
    for entry in entries:
        slots = entry.slots(None)
        form, bias = entry.bind.weight, getattr(entry.bind, "bias", None)
        if entry.rows is None:
            w = form(w, **slots)
            b = bias(b, **slots) if bias is not None and b is not None else b
        else:
            s = slice(*entry.rows)
            w = torch.slice_scatter(w, form(w[s], **slots), 0, *entry.rows)
            if bias is not None and b is not None:
                b = torch.slice_scatter(b, bias(b[s], **slots), 0, *entry.rows)
    return w, b
