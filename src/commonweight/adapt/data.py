"""From rows to a task and its examples, with errors that say whose rows they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core import CommonweightError
from ..host import Host
from .base import limit, prepare, tokenizer_of
from .recipe import Recipe
from .rows import Row
from .tasks import Example, Task, get


@dataclass(frozen=True, kw_only=True)
class Data:
    """One tenant's rows (dicts by column). dev: rows, or the share of the training rows that is held out.
    labels: classes of a classification; None: those of the training rows. sources: what errors call rows and dev."""

    rows: Sequence[Row]
    dev: Sequence[Row] | float | None = None
    labels: Sequence[str] | None = None
    text_column: str | None = None
    label_column: str | None = None
    sources: tuple[str, str] = ("training rows", "dev rows")


def examples(
    host: Host, name: str, data: Data, task: str, recipe: Recipe, tokenizer: Any
) -> tuple[Task, list[Example], list[Example], str]:
    """(task, training examples, dev examples, note). name: for errors, of one among several."""
    kind, of = get(task), f"{name}: " if name else ""
    if not data.rows:
        raise CommonweightError(f"{of}no rows to train on")
    every, sources = list(data.rows), [of + s for s in data.sources]
    rows, dev_rows = split(every, data.dev, recipe.seed, of)
    whole = every if len(rows) < len(every) else None
    labels = data.labels
    if task == "classify" and labels is None:
        labels = named(sources[0], lambda r: kind.classes(r, data.label_column), rows, whole)  # type: ignore
    doing = make_task(host, task, labels, tokenizer, recipe.max_length, data.text_column, data.label_column)
    train = named(sources[0], doing.examples, rows, whole)
    note = doing.note
    dev = named(sources[1], doing.examples, dev_rows, whole) if dev_rows else []
    if not train:
        raise CommonweightError(f"{sources[0]}: no row is long enough to learn from")
    return doing, train, dev, note


def make_task(
    host: Host,
    task: str,
    labels: Sequence[str] | None,
    tokenizer: Any = None,
    max_length: int | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Task:
    """A task on a host's model: its tokenizer, unless another is given, and its room for tokens."""
    kind = get(task)
    tokenizer = tokenizer_of(host.model) if tokenizer is None else prepare(tokenizer)
    longest = limit(host.model, tokenizer, max_length, kind.usual_length)
    return kind(tokenizer, longest, labels, text_column, label_column)


def split(rows: list[Row], dev: Sequence[Row] | float | None, seed: int, of: str = "") -> tuple[list[Row], list[Row]]:
    """(training rows, dev rows); a fraction is drawn from the training rows by the seed."""
    if dev is None:
        return rows, []
    if not isinstance(dev, float | int):
        return rows, list(dev)
    if not 0 < dev < 1:
        raise CommonweightError(f"{of}dev={dev}: wanted a fraction of the training rows between 0 and 1, or rows")
    n = max(1, round(dev * len(rows)))
    if n >= len(rows):
        raise CommonweightError(f"{of}dev={dev} of {len(rows)} rows leaves nothing to train on")
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(drawn[:n])
    return [r for i, r in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def named(what: str, make: Callable[[Any], Any], rows: Sequence[Row], whole: Sequence[Row] | None = None) -> Any:
    """make(rows); an error names where they came from. whole: the rows that these were drawn from: the number of a
    wrong row is its number there."""
    try:
        try:
            return make(rows)
        except CommonweightError:
            if whole is not None:
                make(whole)
            raise
    except CommonweightError as e:
        raise CommonweightError(f"{what}: {e}") from e
