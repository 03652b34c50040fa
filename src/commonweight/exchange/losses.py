"""The loss of each row of a batch, so that many clients' means are made of one forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..adapt.tasks import LM, Classify, Task, scored

Rows = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Tensor]]


def by_row(task: Task) -> Rows | None:
    """(model, batch) -> (summed loss (B,), over how many items (B,)); None where a row has no loss of its own."""
    if isinstance(task, Classify):
        return classify
    return lm if isinstance(task, LM) else None


def classify(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    labels = batch["labels"]
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    loss = F.cross_entropy(logits.float(), labels, reduction="none")
    return loss, loss.new_ones(len(labels))


def lm(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    found, what = scored.logits(model, {k: v for k, v in batch.items() if k != "labels"}, batch["labels"])
    loss = F.cross_entropy(
        found.flatten(0, 1).float(), what.flatten(), ignore_index=scored.IGNORE, reduction="none"
    ).view(what.shape)
    return loss.sum(1), (what != scored.IGNORE).sum(1).to(loss)
