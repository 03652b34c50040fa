"""What a shared model lost, learnt again: distillation from the model that it was made of, on adapt's loop and rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapt.base import limit, prepare, tokenizer_of
from ..adapt.data import Understood, split
from ..adapt.recipe import Recipe
from ..adapt.rows import Row
from ..adapt.tasks import LM
from ..adapt.tasks.base import rows_of
from ..adapt.tasks.beside import Beside, speaking
from ..adapt.tasks.distil import Distillation, Distilled
from ..adapt.tasks.features import Features
from ..adapt.tasks.sampled import Sampled
from ..adapt.tasks.scored import output_layer
from ..adapt.train import train_understood
from ..adapt.trainer import Progress
from ..adapt.whole import Whole, train_whole
from ..builder.settle import settle
from ..core import CommonweightError, build
from ..host import Host
from ..host.fingerprint import of_base
from .choosing import choose, codes, restore
from .methods import available
from .sampling import Draw

LR = 2e-4  # AdamW's, as arXiv 2410.20672 has it


@dataclass(frozen=True)
class Healed:
    """model: the one that was given, with the best numbers seen. tokens: read in training, by this call. metrics: of
    the dev rows. host: with the adapter that was trained, where one was. note: what became of the rows."""

    model: Any = field(repr=False)
    seconds: float
    steps: int
    tokens: int
    curve: list[dict[str, float]] = field(repr=False)
    metrics: dict[str, float]
    note: str
    settings: dict[str, Any] = field(repr=False)
    host: Host | None = None


def heal(
    model: Any,
    *,
    teacher: nn.Module | None = None,
    rows: Sequence[Row],
    tokens: int | None = None,
    dev_rows: Sequence[Row] | float | None = None,
    loss: str = "forward-kl",
    sample: Draw | None = None,
    distillation: Mapping[str, Any] | None = None,
    method: str | Any = None,
    options: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **recipe: Any,
) -> Healed:
    """Trains every number of a shared model (or, with `method`, an adapter on it) until it says what its teacher says.

    teacher: as a rule the model it was made of; None: the text alone teaches. rows: as `adapt` reads them for lm: whole
    texts, prompts and completions, chats; packed into sequences, unless packing=False. tokens: how many are read, in as
    many passes as it takes, up to 10,000; None: as the recipe says. sample: what draws a code for each step.
    loss, distillation: see `tasks.distil.Distillation`; foldgpt learns hidden states of the last blocks too. method,
    options: of adapters, as LLM-Neo (arXiv 2411.06839) trains LoRA with a teacher. recipe: fields of `Recipe`; the
    learning rate is 2e-4 where nothing is said. checkpoint: a folder from which a killed run is resumed, to the same
    bits.
    Raises: CommonweightError, also for a model in half precision, in which small steps are lost.
    """
    started = time.perf_counter()
    language = output_layer(model) is not None
    numbers = build(Recipe, {"packing": language, "batch_size": 8, **recipe})
    _fit(model, teacher, method, options, language, tokens)
    if not language:
        _alone(loss, distillation)
    tokenizer = prepare(tokenizer) if tokenizer is not None else tokenizer_of(model)
    kind: Any = LM if language else Features
    task: Any = kind(tokenizer, limit(model, tokenizer, numbers.max_length, kind.usual_length))
    held, dev_held = split(_rows(rows), dev_rows, numbers.seed)
    train, seen = task.examples(held), task.seen
    dev = task.examples(dev_held) if dev_held else []
    task.seen = seen
    how = build(Distillation, {"loss": loss, **usual(model), **(distillation or {})})
    facts: dict[str, Any] = {"teacher": None}
    if teacher is not None:
        task = Distilled(task, teacher, how) if language else task.taught_by(teacher)
        facts = {"teacher": of_base(teacher), **{k: getattr(how, k) for k in how.__dataclass_fields__}}  # type: ignore
    was: dict[str, Tensor] = {}
    if sample is not None:
        was = {n: p.detach().clone() for n, p in codes(model).items()}
        task = Sampled(task, lambda: choose(model, sample()), lambda: restore(model, was))
    if speaking(model):
        task = Beside(task)
    numbers = _passes(numbers, train, tokens)
    read: list[int] = []
    runs: dict[str, Any] = {"checkpoint": checkpoint, "resume": resume, "progress": _counted(progress, read)}
    host = None
    if method is not None:
        host = Host(model)
        given = {"healed": Understood(task, train, dev, seen, seen)}
        made = train_understood(host, given, numbers, task="lm", method=method, options=options, **runs)["healed"]
        steps, curve, metrics, told = made.steps, made.curve, made.metrics, made.settings
    else:
        packed = task.pack(train) if numbers.packing else train
        run = train_whole(Whole(model, lr=LR), task, packed, dev, numbers, facts=facts, **runs)
        curve, told = run.curve, run.settings
        steps, metrics = int(curve[-1]["step"]) if curve else 0, _kept(curve, dev)
    if sample is not None:
        restore(model, was)
    if method is None and getattr(getattr(model, "config", None), "sharing", None):
        settle(model)
    seconds = time.perf_counter() - started
    return Healed(model, seconds, steps, read[-1] if read else 0, curve, metrics, seen.note, told, host)


def _rows(rows: Sequence[Row]) -> list[Row]:
    """Raises: CommonweightError for what is no row."""
    found = list(rows)
    if wrong := next(((i, r) for i, r in enumerate(found) if not isinstance(r, Mapping)), None):
        raise CommonweightError(f"row {wrong[0]} is {str(wrong[1])[:60]!r}; wanted a row such as {{'text': ...}}")
    return found


def usual(model: Any) -> Mapping[str, Any]:
    """What the method that made a model says of its distillation."""
    name = getattr(getattr(model, "config", None), "sharing", {}).get("method", "")
    found = available().get(name)
    return {} if found is None else found.healing


def _fit(model: Any, teacher: Any, method: Any, options: Any, language: bool, tokens: int | None) -> None:
    """Raises: CommonweightError for what cannot be healed."""
    name = type(model).__name__
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise CommonweightError(f"tokens is {tokens!r}; wanted a whole number >= 1, or None")
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise CommonweightError(f"{name} reads {model.main_input_name}; heal's rows are texts")
    if options and method is None:
        raise CommonweightError("options are of an adapter's method; name it: method='lora'")
    if teacher is model:
        raise CommonweightError("the teacher is the model itself; give the model that it was made of, or none")
    if teacher is None and not language:
        raise CommonweightError(f"{name} has no language head, so that text alone teaches nothing; give a teacher")
    if teacher is not None and (not isinstance(teacher, nn.Module) or (language and output_layer(teacher) is None)):
        raise CommonweightError(f"the teacher is a {type(teacher).__name__}; wanted the model that {name} was made of")
    half = next((p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)
    if half is not None and method is None:
        raise CommonweightError(
            f"the model's own numbers would be trained in {str(half).removeprefix('torch.')}, in which small steps are "
            "lost; load it in float32, or train an adapter on it, method='lora'"
        )


def _alone(loss: str, distillation: Mapping[str, Any] | None) -> None:
    """Raises: CommonweightError for what an encoder, which learns hidden states alone, does not do."""
    given = [*(["loss"] if loss != "forward-kl" else []), *(distillation or {})]
    if given:
        raise CommonweightError(f"{given[0]} is of language models; an encoder learns its teacher's last hidden states")


def _passes(recipe: Recipe, train: Sequence[dict[str, Any]], tokens: int | None) -> Recipe:
    """The recipe with as many passes as make so many tokens."""
    if tokens is None:
        return recipe
    there = sum(len(e["input_ids"]) for e in train)
    return replace(recipe, epochs=min(10_000.0, tokens / there))


def _counted(progress: Callable[[Progress], None] | None, read: list[int]) -> Callable[[Progress], None]:
    """`progress`, and how many tokens were read."""

    def tell(p: Progress) -> None:
        read[:] = [p.tokens]
        if progress is not None:
            progress(p)

    return tell


def _kept(curve: Sequence[Mapping[str, float]], dev: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metrics of the numbers that were kept."""
    found = min((c for c in curve if "dev_loss" in c), key=lambda c: c["dev_loss"], default=None)
    if found is None:
        return {}
    return {**{k.removeprefix("dev_"): v for k, v in found.items() if k.startswith("dev_")}, "n": rows_of(dev)}
