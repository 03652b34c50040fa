"""From rows to a task and its examples, with errors that say whose rows they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..core import CommonweightError, counted, unknown
from ..host import Host
from .base import limit, prepare, tokenizer_of
from .names import SIDES
from .recipe import Recipe
from .rows import Row
from .tasks import LM, Example, Seen, Senses, Task, check_columns, get, packing
from .tasks.base import told


@dataclass(frozen=True, kw_only=True)
class Data:
    """One tenant's rows (dicts by column). dev: rows, or the share of the training rows that is held out.
    labels: classes of a classification; None: those of the training rows. truncation_side: left or right. reward: of
    the task grpo, see `reward`. task_column: of a classification, for methods that go by tasks. retain: rows of
    which a method keeps the outputs. sources: what errors call rows and dev."""

    rows: Sequence[Row]
    dev: Sequence[Row] | float | None = None
    labels: Sequence[str] | None = None
    text_column: str | None = None
    label_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    truncation_side: str | None = None
    reward: Any = None
    task_column: str | None = None
    retain: Sequence[Row] = ()
    sources: tuple[str, str] = ("training rows", "dev rows")


COLUMNS = "text_column", "label_column", "prompt_column", "completion_column", "task_column"


def columns(of: Any) -> dict[str, str | None]:
    """The columns that somebody named, as a task takes them."""
    return {c: getattr(of, c) for c in COLUMNS}


def reading(of: Any) -> dict[str, Any]:
    """All that was said of how rows are read, as a task takes it."""
    return {**columns(of), "truncation_side": of.truncation_side, "reward": of.reward}


class Understood(NamedTuple):
    """What rows became. seen, dev_seen: how they were read."""

    task: Task
    train: list[Example]
    dev: list[Example]
    seen: Seen
    dev_seen: Seen
    kept: Sequence[Example] = ()

    @property
    def note(self) -> str:
        lost = [f"of the dev rows {told(n, what)}" for what, n in self.dev_seen.counted.items()]
        return "; ".join([n for n in (self.seen.note, *lost) if n])


def examples(host: Host, name: str, data: Data, task: str, recipe: Recipe, tokenizer: Any) -> Understood:
    """A tenant's examples. name: for errors, of one among several."""
    kind, of = get(task), f"{name}: " if name else ""
    if not data.rows:
        raise CommonweightError(f"{of}no rows to train on")
    every, sources = list(data.rows), [of + s for s in data.sources]
    rows, dev_rows = split(every, data.dev, recipe.seed, of)
    whole = every if len(rows) < len(every) else None
    labels = data.labels
    if task == "classify" and labels is None:
        labels = named(sources[0], lambda r: kind.classes(r, data.label_column), rows, whole)  # type: ignore
    doing = make_task(host, task, labels, tokenizer, recipe.max_length, **reading(data))
    kept = named(f"{of}rows to keep", doing.examples, data.retain, None) if data.retain else []
    train = named(sources[0], doing.examples, rows, whole)
    seen = doing.seen
    if recipe.packing and train:
        if not isinstance(doing, LM):
            raise CommonweightError(f"packing: rows of the task {task} cannot be packed; only those of lm can")
        seen.remark = "; ".join(r for r in (seen.remark, packing.told(doing.pack(train), doing.max_length)) if r)
    dev = named(sources[1], doing.examples, dev_rows, whole) if dev_rows else []
    if not train:
        raise CommonweightError(f"{sources[0]}: no row is long enough to learn from")
    return Understood(doing, train, dev, seen, doing.seen if dev_rows else Seen(), kept)


def make_task(
    host: Host,
    task: str,
    labels: Sequence[str] | None,
    tokenizer: Any = None,
    max_length: int | None = None,
    **reading: Any,
) -> Task:
    """A task on a host's model: its tokenizer, unless another is given, and its room for tokens."""
    kind = get(task)
    check_columns(task, reading.get("prompt_column"), reading.get("completion_column"))
    if reading.get("task_column") is not None and task != "classify":
        raise CommonweightError(
            f"task_column: rows of the task {task} are not told by tasks; only those of classify are"
        )
    sense: Any = getattr(host.model, "sense", None)
    if sense is not None:
        return sensing(host, task, sense, labels, tokenizer, max_length, **reading)
    side = reading.get("truncation_side")
    if side not in (None, *SIDES):
        raise unknown("truncation side", str(side), SIDES)
    tokenizer = tokenizer_of(host.model) if tokenizer is None else prepare(tokenizer)
    longest = limit(host.model, tokenizer, max_length, kind.usual_length)
    return kind(tokenizer, longest, labels, **reading)


def sensing(
    host: Host, task: str, sense: str, labels: Sequence[str] | None, processor: Any, max_length: int | None,
    **reading: Any,
) -> Task:  # fmt: skip
    """A task on a model that reads images or sounds: its processor, unless another is given."""
    if task != "classify":
        raise CommonweightError(f"{task}: a model that reads {sense} is trained for classify alone")
    if sense == "image" and max_length:
        raise CommonweightError(f"max_length={max_length}: images have no length; leave it out")
    return Senses(processor or tokenizer_of(host.model), max_length, labels, **reading)


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
        raise CommonweightError(f"{of}dev={dev} of {counted(len(rows), 'row')} leaves nothing to train on")
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
