"""One label per image or sound."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core import CommonweightError
from ..rows import AUDIO, IMAGE, LABEL, Row, column
from . import sensing
from .base import HELD, Example, Seen, marked, need
from .classify import Classify, label_of

SECONDS = 30.0  # of a sound, at most, where nobody says: Whisper's window, and ours for the others


class Senses(Classify):
    """As `Classify`, of what a model's own image processor or feature extractor makes of a row's image or sound.

    tokenizer: that processor. max_length: samples of a sound, at the processor's rate; images have none. Files are
    opened when a batch is made, and looked at once before the first step. An example holds its file's path, or what
    its row held, so that the task of another tenant can collate it.
    """

    usual_length: ClassVar[int] = 0

    def __init__(self, tokenizer: Any, max_length: int | None, *args: Any, **reading: Any):
        super().__init__(None, max_length or 0, *args, **reading)
        self.processor = processor = tokenizer
        self.sense = "audio" if hasattr(processor, "sampling_rate") else "image"
        if self.sense == "audio":
            self.rate = int(processor.sampling_rate)
            self.max_length = max_length or round(SECONDS * self.rate)
            given = inspect.signature(type(processor).__call__).parameters.get("padding")
            # extractors of one window (Whisper, AST) fill it up by themselves
            self.how: dict[str, Any] = {"sampling_rate": self.rate}
            if given is not None and given.default in (False, True):
                self.how |= {"padding": True, "return_attention_mask": True}

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        self.seen = Seen(rows=len(rows))
        of = column(rows, self.text_column, IMAGE if self.sense == "image" else AUDIO, self.sense)
        label = column(rows, self.label_column, LABEL, "label")
        self.seen.used = {self.sense: of, "label": label}
        tasks = self._tasks(rows)
        number = {name: i for i, name in enumerate(self.labels or ())}
        out: list[Example] = []
        heard = []
        for i, (row, task) in enumerate(zip(rows, tasks)):
            value, name = row.get(of), label_of(row, label, i)
            if name not in number:
                raise CommonweightError(
                    f"row {i + 1}: the label {name!r} does not occur in the training rows; known: {', '.join(number)}"
                )
            if value is None or value == "":
                raise CommonweightError(f"row {i + 1}: {of!r} is {value!r}; wanted the path of an {self.sense} file")
            try:
                length = self._look(value, heard)
                told = sensing.digest(value)
            except (CommonweightError, OSError) as e:
                raise CommonweightError(f"row {i + 1}: {_named(value)}: {e}") from e
            out.append({HELD: sensing.lasting(value), "of": told, "length": length, "label": number[name], **task})
        if heard:
            self.seen.remark = f"{sum(heard):,.1f} s of sound, {max(heard):.1f} in the longest"
        if over := sum(s > self.max_length / self.rate for s in heard):
            self.seen.counted[f"sounds cut off after {self.max_length / self.rate:g} s"] += over
        return out

    def _look(self, value: Any, heard: list[float]) -> int:
        """What a batch's cost goes by."""
        if self.sense == "image":
            sensing.looked_at(value)
            return 1
        heard.append(sensing.seconds(value))
        return min(round(heard[-1] * self.rate), self.max_length)

    def tokens(self, example: Example) -> tuple[int, int]:
        return 0, 0

    def shown(self, example: Example) -> str:
        return f"{_named(example[HELD])} -> {marked(list(self.labels or ())[example['label']])}"

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        opened = [self._opened(e[HELD]) for e in examples]
        try:
            if self.sense == "image":
                made = self.processor(images=opened, return_tensors="pt")
            else:
                made = self.processor(opened, return_tensors="pt", **self.how)
        except ValueError as e:
            raise CommonweightError(f"{type(self.processor).__name__} cannot read a batch of these rows: {e}") from e
        batch = {k: v for k, v in made.items() if isinstance(v, Tensor)}
        batch["labels"] = torch.tensor([e["label"] for e in examples])
        if self.tasks:
            batch["tasks"] = torch.tensor([self.tasks.index(e["task"]) for e in examples])
        return batch

    def _opened(self, value: Any) -> Any:
        try:
            if self.sense == "image":
                return sensing.image(value)
            return sensing.sound(value, self.rate, self.max_length / self.rate)
        except CommonweightError as e:
            raise CommonweightError(f"{_named(value)}: {e}") from e


def _named(value: Any) -> str:
    at = value.get("path") if isinstance(value, dict) else value
    return str(at) if isinstance(at, str | PathLike) else f"a {type(value).__name__}"
