"""Gradient checkpointing: a block keeps its input alone, and is computed once more in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from ..core import CommonweightError
from ..host import Host
from ..host.checkpoints import Replay
from ..host.names import named
from ..host.sites import blocks


@contextmanager
def recomputed(host: Host) -> Iterator[None]:
    """Within it every block of the host's model is a checkpoint that keeps its route and its random state.

    The blocks' own forward is wrapped, not transformers' switch: that one works only while a block is in training
    mode, in which the frozen base's dropout would draw. Memory: one hidden state a block. Cost: a forward pass more
    per step. The numbers are the same to the bit. Raises: CommonweightError for a model without blocks.
    """
    names = blocks(host.model)
    if not names:
        raise CommonweightError(
            f"{type(host.model).__name__} has no list of blocks that could be recomputed; leave out "
            "gradient_checkpointing"
        )
    again = Replay(partial(checkpoint, use_reentrant=False), host.base.current)
    inner = dict(named(host.model))
    layers = [inner[n] for n in names]
    before = [layer.__dict__.get("forward") for layer in layers]
    caching = [c for c in _configs(host.model) if getattr(c, "use_cache", False)]
    for layer in layers:
        layer.forward = partial(again, layer.forward)
    for config in caching:  # a cache would be written twice
        config.use_cache = False
    try:
        yield
    finally:
        for layer, was in zip(layers, before):
            del layer.forward
            if was is not None:
                layer.forward = was
        for config in caching:
            config.use_cache = True


def _configs(model: Any) -> list[Any]:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    return [c for c in {id(c): c for c in (config, text)}.values() if c is not None]
