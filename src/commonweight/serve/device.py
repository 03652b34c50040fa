"""Where a model takes its inputs, whose parts may lie on several devices or be put away (accelerate's device maps)."""

from __future__ import annotations

import torch
from torch import nn

from ..host.weights import device_of


def entry(model: nn.Module) -> torch.device:
    """Where token ids belong: with the table that they are looked up in, or where a hook moves what that is given."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return device_of(model)
    return device_of(table) if isinstance(table, nn.Module) and [*table.parameters()] else device_of(model)


def devices(model: nn.Module) -> list[str]:
    """On which its parameters lie; "elsewhere" for those that a hook loads for each pass."""
    found = {"elsewhere" if p.device.type == "meta" else str(p.device) for p in model.parameters()}
    return sorted(found)
