"""Losses that look back: what earlier heads said of the new task's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapt.tasks.base import Example, Wrapped


def softened(told: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """-sum_i p'_i log q'_i, the mean over rows: p', q' the two softmaxes to the power 1 / T, normalised again, which
    are the softmaxes of logits / T. told, logits: (rows, classes). Source: LwF, arXiv 1606.09282, eqs. (2) to (4)."""
    p = (told / temperature).softmax(-1)
    return -(p * (logits / temperature).log_softmax(-1)).sum(-1).mean()


class Remembering(Wrapped):
    """A classification whose loss is CE + weight * sum over earlier tasks of `softened`(what their heads said before
    this task, what they say now).

    heads: task -> (W (classes, d), b (classes,)), frozen: they read the features of the tenant in training. told: task
    -> (rows, classes), by the row's number in the example. Cost: one product of the features for each earlier head.
    """

    mixes: ClassVar[bool] = True

    def __init__(
        self, task: Any, heads: Mapping[str, tuple[Tensor, Tensor]], told: Mapping[str, Tensor], weight: float,
        temperature: float,
    ):  # fmt: skip
        super().__init__(task)
        self.heads, self.told, self.weight, self.temperature = heads, told, weight, temperature

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = self.task.collate(examples)
        if all("place" in e for e in examples):
            batch["place"] = torch.tensor([e["place"] for e in examples])
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        batch = dict(batch)
        place = batch.pop("place").cpu()
        out = model(**batch, output_features=True)
        features = out.hidden_states[0]
        loss = out.loss
        for name, (w, b) in self.heads.items():
            said = F.linear(features, w.to(features), b.to(features))
            loss = loss + self.weight * softened(self.told[name][place].to(said), said, self.temperature)
        return loss


def numbered(rows: Sequence[Example]) -> list[Example]:
    """Rows that know their place."""
    return [{**r, "place": i} for i, r in enumerate(rows)]
