"""PEFT's layer_replication: an adapter of a deeper model, whose layers are copies of its base's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...core import CommonweightError, counted
from ...formats.peft import refusals


def opened(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without layer_replication, where the model is the deeper one; the file's keys are its names.

    Cost: each layer that is there twice is compared with its first copy. Raises: CommonweightError for the base that
    the adapter names, for a model of another depth, and where layers that must be copies are not.
    """
    config = dict(config)
    if not (runs := config.pop("layer_replication", None)):
        return config
    origin, blocks = _origin(runs), _blocks(model)
    if origin is None or blocks is None or len(blocks) != len(origin):
        has = "" if blocks is None else f"; this base has {counted(len(blocks), 'layer')}"
        wants = "" if origin is None else f"; it has {counted(len(origin), 'layer')}{has}"
        raise refusals.option("layer_replication", runs, wants)
    for i, layer in enumerate(origin):
        if (first := origin.index(layer)) != i and not _same(blocks[first], blocks[i]):
            raise CommonweightError(
                f"adapter_config.json: layer_replication={runs} makes layers {first} and {i} copies of one layer, and "
                "in this base they are not; take the base that the adapter names, with its layers repeated"
            )
    return config


def _origin(runs: Any) -> list[int] | None:
    """Which layer of the shallow model each layer is; None where that is not what stands there."""
    try:
        return [layer for first, last in runs for layer in range(first, last)]
    except (TypeError, ValueError):
        return None


def _blocks(model: nn.Module) -> nn.ModuleList | None:
    """The list that PEFT repeats: ``layers`` (Llama and its kin), ``encoder.layer`` (BERT), or ``h`` (Falcon)."""
    inner: Any = model
    while isinstance(getattr(inner, "model", None), nn.Module):
        inner = inner.model
    inner = getattr(inner, "bert", inner)
    found = (getattr(inner, "layers", None), getattr(getattr(inner, "encoder", None), "layer", None))
    return next((b for b in (*found, getattr(inner, "h", None)) if isinstance(b, nn.ModuleList)), None)


def _same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return mine.keys() == theirs.keys() and all(p is theirs[n] or torch.equal(p, theirs[n]) for n, p in mine.items())
