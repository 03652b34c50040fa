"""What a method may ask of rows before training, by name: statistics of each site that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

KINDS = {
    "gradient": "the mean gradient of the loss by each weight, (out, inp)",
    "squared": "the sum over rows of the squared gradient of each row's loss by each weight, (out, inp)",
    "inputs": "X^T X / n of the n tokens that come into each layer, (inp, inp)",
    "channels": "the norm of each channel of what a layer gives, over the tokens of a class; the mean over classes",
    "twin": "the mean gradient of the loss by each pool of a dense tenant, and the pool",
    "routes": "the share of a layer's routes, tokens times experts a token, that each expert gets, a number",
}
Statistics = Mapping[str, Tensor]  # site -> float32


class Shown(NamedTuple):
    """Rows for a method that begins from data. batches: the model's inputs, rows along the first dimension. loss: of
    the model and a batch; the mean over its rows. None: the model's own, of batches with "labels"."""

    batches: Iterable[Mapping[str, Any]]
    loss: Callable[[nn.Module, Any], Tensor] | None = None
