"""One label per text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import CommonweightError, counted
from ...host.weights import device_of
from ..rows import LABEL, TEXT, Row, column, text_of
from .base import Example, Given, Seen, batches, marked, need, padded


class Classify(Given):
    """Mean cross entropy over the rows of a batch. Metrics: accuracy, macro F1, loss."""

    usual_length: ClassVar[int] = 128
    better: ClassVar[tuple[str, bool]] = ("accuracy", True)
    labelled: ClassVar[bool] = True

    @staticmethod
    def classes(rows: Sequence[Row], label_column: str | None = None) -> tuple[str, ...]:
        """The labels that occur, numbers in their order, names in the alphabet's. Raises: when there are not two."""
        need(rows)
        name = column(rows, label_column, LABEL, "label")
        found = {label_of(r, name, i) for i, r in enumerate(rows)}
        if len(found) < 2:
            raise CommonweightError(f"column {name!r}: only the label {min(found)!r} occurs; wanted at least two")
        if len(found) > 1000 and len(found) > len(rows) // 2:
            raise CommonweightError(
                f"column {name!r}: {counted(len(found), 'label')} in {counted(len(rows), 'row')}; is that the label?"
            )
        return tuple(sorted(found, key=lambda s: (0, int(s), s) if s.lstrip("-").isdecimal() else (1, 0, s)))

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        self.seen = Seen(rows=len(rows))
        text = column(rows, self.text_column, TEXT, "text")
        label = column(rows, self.label_column, LABEL, "label")
        self.seen.used = {"text": text, "label": label}
        tasks = self._tasks(rows)
        number = {name: i for i, name in enumerate(self.labels or ())}
        texts = [text_of(r, text, i) for i, r in enumerate(rows)]
        names = [label_of(r, label, i) for i, r in enumerate(rows)]
        for i, name in enumerate(names):
            if name not in number:
                raise CommonweightError(
                    f"row {i + 1}: the label {name!r} does not occur in the training rows; known: {', '.join(number)}"
                )
        ids = self.cut(texts, "rows")
        return [{"input_ids": i, "label": number[n], **t} for i, n, t in zip(ids, names, tasks)]

    def _tasks(self, rows: Sequence[Row]) -> list[dict[str, str]]:
        """Of each row, the task that a column names; nothing where no column does."""
        if self.task_column is None:
            return [{} for _ in rows]
        name = column(rows, self.task_column, (), "task")
        self.seen.used["task"] = name
        return [{"task": label_of(r, name, i, "a task's name")} for i, r in enumerate(rows)]

    def shown(self, example: Example) -> str:
        names = list(self.labels or ())
        return f"{self.tokenizer.decode(example['input_ids'])} -> {marked(names[example['label']])}"

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = padded([e["input_ids"] for e in examples], self.tokenizer.pad_token_id)
        batch["labels"] = torch.tensor([e["label"] for e in examples])
        if self.tasks:
            batch["tasks"] = torch.tensor([self.tasks.index(e["task"]) for e in examples])
        return batch

    def items(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss

    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        device = device_of(model)
        n, classes = len(examples), len(self.labels or ())
        told, truth, loss = torch.empty(n, dtype=torch.long), torch.empty(n, dtype=torch.long), 0.0
        for places, batch in batches(self, examples, batch_size, device):
            labels = batch.pop("labels")
            logits = model(**batch).logits.float()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            told[places], truth[places] = logits.argmax(1).cpu(), labels.cpu()
        f1 = []
        for c in range(classes):
            hit = ((told == c) & (truth == c)).sum().item()
            both = (told == c).sum().item() + (truth == c).sum().item()
            if both:
                f1.append(2 * hit / both)
        right = int((told == truth).sum())
        return {"accuracy": right / n, "macro_f1": sum(f1) / len(f1), "loss": loss / n, "n": n}


def label_of(row: Row, name: str, i: int, wanted: str = "a label") -> str:
    """A label as the text that stands in the file; a boolean as JSON has it."""
    value = row.get(name)
    if value is None or value == "" or value != value or isinstance(value, list | dict | bytes):
        raise CommonweightError(f"row {i + 1}: {name!r} is {value!r}; wanted {wanted}")
    return str(value).lower() if isinstance(value, bool) else str(value)
