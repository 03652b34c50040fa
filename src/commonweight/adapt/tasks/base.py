"""What the loop asks of a task, and what the three of them share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ...core import CommonweightError
from ..rows import Row

Example = dict[str, Any]
HELD = "held"  # of an example of an image or a sound: a path, else what its row held, which JSON may not know


@dataclass
class Seen:
    """How a task read the rows it was given last. how: what the loss is on. used: columns by what they are to the task.
    counted: what was cut or left out, in words, with its number. remark: what else a user should know."""

    how: str = ""
    used: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    counted: Counter[str] = field(default_factory=Counter)
    remark: str = ""

    @property
    def note(self) -> str:
        counted = [told(n, what) for what, n in self.counted.items()]
        return "; ".join(told for told in (self.how, *counted, self.remark) if told)


def told(n: int, what: str) -> str:
    """1 chat cut off; 2 chats cut off."""
    things, _, done = what.partition(" ")
    return f"{n:,} {things.removesuffix('s') if n == 1 else things} {done}".rstrip()


class Task(Protocol):
    """tokenizer and max_length are given once; `labels` are the classes of a classification, else None.

    usual_length: what the recipe takes when nobody says. better: the metric that early stopping watches and whether
    more of it is better. mixes: whether a batch may have rows of several tenants. seen: how the rows were read that
    `examples` had last. note: that in words. shown: an example as text, what is scored between ⟦ and ⟧. tokens: of an
    example (tokens, scored ones; 0: the loss is not one of tokens).
    items: over how many rows or tokens a batch's loss is the mean.
    """

    usual_length: ClassVar[int]
    better: ClassVar[tuple[str, bool]]
    mixes: ClassVar[bool]
    labels: tuple[str, ...] | None
    max_length: int
    seen: Seen

    @property
    def note(self) -> str: ...
    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        labels: Sequence[str] | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        prompt_column: str | None = None,
        completion_column: str | None = None,
        truncation_side: str | None = None,
        reward: Any = None,
        task_column: str | None = None,
    ): ...
    def examples(self, rows: Sequence[Row]) -> list[Example]: ...
    def tokens(self, example: Example) -> tuple[int, int]: ...
    def shown(self, example: Example) -> str: ...
    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]: ...
    def items(self, batch: dict[str, Tensor]) -> int: ...
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor: ...
    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]: ...


class Wrapped:
    """A task inside another: what the outer one does not say itself, the inner one says."""

    mixes: ClassVar[bool] = False

    def __init__(self, task: Any):
        self.task = task

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)


class Given:
    """What every task is given, kept; only a task that is `labelled` keeps the classes."""

    labelled: ClassVar[bool] = False
    mixes: ClassVar[bool] = True
    tasks: Sequence[str]  # that a tenant goes by, in its order

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        labels: Sequence[str] | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        prompt_column: str | None = None,
        completion_column: str | None = None,
        truncation_side: str | None = None,
        reward: Any = None,
        task_column: str | None = None,
    ):
        self.truncation_side, self.reward = truncation_side, reward
        self.tokenizer, self.max_length = tokenizer, max_length
        self.labels = tuple(labels) if self.labelled and labels is not None else None
        self.text_column, self.label_column = text_column, label_column
        self.prompt_column, self.completion_column = prompt_column, completion_column
        self.task_column, self.tasks = task_column, ()
        self.seen = Seen()

    @property
    def note(self) -> str:
        return self.seen.note

    def cut(self, texts: Sequence[str], what: str) -> list[list[int]]:
        """Tokens of each text, at most max_length; those that had more are counted."""
        was = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = self.truncation_side or was
        try:
            got = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, verbose=False)
        finally:
            self.tokenizer.truncation_side, was = was, self.tokenizer.truncation_side
        ids = got["input_ids"]
        if got.encodings is not None:
            long = sum(bool(e.overflowing) for e in got.encodings)
        else:  # a tokenizer in Python does not say what it cut
            full = [i for i, one in enumerate(ids) if len(one) >= self.max_length]
            long = sum(len(self.tokenizer(texts[i], verbose=False)["input_ids"]) > self.max_length for i in full)
        if long:
            where = "after" if was == "right" else "before the last"
            self.seen.counted[f"{what} cut off {where} {self.max_length} tokens"] += long
        return ids

    def tokens(self, example: Example) -> tuple[int, int]:
        return sum(len(v) for v in example.values() if isinstance(v, list)), 0


def marked(text: str) -> str:
    """The marks around what the loss is on, where an example is shown."""
    return f"⟦{text}⟧"


def length(example: Example) -> int:
    """What a batch's cost goes by."""
    if (said := example.get("length")) is not None:
        return said
    return max(len(v) for v in example.values() if isinstance(v, list))


def rows_of(examples: Sequence[Example]) -> int:
    """How many rows they came from: a row may make several, all but its first ``continued``."""
    return sum(not e.get("continued") for e in examples)


def pad(lists: Sequence[list[int]], value: int) -> Tensor:
    """(B, T) int64, padded on the right to the longest: dynamic padding."""
    longest = max(map(len, lists))
    return torch.tensor([one + [value] * (longest - len(one)) for one in lists])


def padded(ids: Sequence[list[int]], pad_id: int) -> dict[str, Tensor]:
    return {"input_ids": pad(ids, pad_id), "attention_mask": pad([[1] * len(i) for i in ids], 0)}


def batches(
    task: Task, examples: Sequence[Example], size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(places, batch), the longest first: little is padded, and memory runs out at once or never."""
    order = sorted(range(len(examples)), key=lambda i: (-length(examples[i]), i))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        yield places, {k: v.to(device) for k, v in task.collate([examples[i] for i in places]).items()}


def need(rows: Sequence[Row]) -> None:
    if not rows:
        raise CommonweightError("no rows to train or measure on")
