"""An encoder with a teacher: its hidden states, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core import CommonweightError
from ..rows import Row, text_of
from .base import Example, Given, Seen, batches, need, padded, rows_of
from .forms import Whole, form


class Features(Given):
    """Mean squared error of the last hidden states, as a share of the teacher's mean square; padding aside.

    Rows: whole texts, cut to max_length. Metrics: loss. Source: the distillation of hidden states as in TinyBERT, arXiv
    1909.10351, of the last layer alone, without a map since the widths are equal.
    """

    usual_length: ClassVar[int] = 128
    better: ClassVar[tuple[str, bool]] = ("loss", False)
    teacher: nn.Module

    def taught_by(self, teacher: nn.Module) -> Features:
        self.teacher = teacher.eval()
        return self

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        self.seen = Seen(rows=len(rows), how="loss on the teacher's hidden states")
        found = form(rows, self.text_column, self.prompt_column, self.completion_column)
        if not isinstance(found, Whole):
            raise CommonweightError("an encoder is healed on whole texts; give rows with a column text")
        texts = [text_of(r, found.text, i) for i, r in enumerate(rows)]
        return [{"input_ids": ids} for ids in self.cut(texts, "texts")]

    def shown(self, example: Example) -> str:
        return self.tokenizer.decode(example["input_ids"])

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return padded([e["input_ids"] for e in examples], self.tokenizer.pad_token_id)

    def items(self, batch: dict[str, Tensor]) -> int:
        return int(batch["attention_mask"].sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            wanted = _states(self.teacher, batch)
        return (_states(model, batch) - wanted).square().mean() / wanted.square().mean()

    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        device, wrong, size, tokens = next(model.parameters()).device, 0.0, 0.0, 0
        for _, batch in batches(self, examples, batch_size, device):
            wanted = _states(self.teacher, batch)
            wrong += float((_states(model, batch) - wanted).square().sum())
            size, tokens = size + float(wanted.square().sum()), tokens + self.items(batch)
        return {"loss": wrong / size, "tokens": tokens, "n": rows_of(examples)}


def _states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(tokens that are no padding, d), of the base where a model has a head."""
    found: Any = getattr(model, str(getattr(model, "base_model_prefix", "")), model)(**batch)
    return found.last_hidden_state[batch["attention_mask"].bool()].float()
