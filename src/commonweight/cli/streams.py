"""What `commonweight adapt --stream` does: tasks one after another, into a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import typer

from ..core import CommonweightError
from . import early
from .flags import EVERY
from .said import Said

WHERE = "they stand in the file of --stream"
AGAINST = {
    "data": WHERE, "tenants": "tasks come one after another, tenants together", "common": "", "over": "",
    "tenant": WHERE, "out": "what is learned goes into --store", "dev": WHERE,
    "codec": "a stream goes on with what lies in the store", "modules_to_save": "", "token_rows": "", "shard": "",
    "push_to_hub": "", "packing": "", "text_column": WHERE, "label_column": WHERE, "prompt_column": WHERE,
    "completion_column": WHERE, "truncation_side": WHERE, "no_header": WHERE, "reward": "",
    "overwrite": "a store keeps versions", "log_to": "", "quantize": "", "liger": "", "tokenizer": "",
}  # fmt: skip
Training = Callable[[Said, str], AbstractContextManager[tuple[Any, Any]]]  # see `training.training`
HOW = "task", "sites", "dtype", "device", "device_map"


def run(said: Said, training: Training) -> None:
    """Raises: CommonweightError for flags that do not go together, before anything is loaded."""
    assert said.stream is not None
    for name in said.given(*AGAINST):
        flag = "DATA" if name == "data" else f"--{name.replace('_', '-')}"
        why = AGAINST[name]
        raise CommonweightError(f"{flag} cannot be used with --stream{f': {why}' if why else ''}; leave it out")
    if said.model is None:
        raise CommonweightError("no MODEL: name the base model's folder")
    if said.eval_file not in (None, EVERY):
        raise CommonweightError(
            f"--eval {said.eval_file} with --stream: it takes no file, each task's rows stand in {said.stream} as "
            "eval:; put --eval at the end"
        )
    early.model(said.model, said.task or "classify")
    early.stream(said.stream, said.method, said.option, bool(said.resume))
    early.task(said.task)
    early.dtype(said.dtype)
    early.device(said.device)
    early.optimizer(said.optimizer)
    early.recipe(said.recipe)
    if said.store is None and not said.dry_run:
        raise CommonweightError("no output: --stream learns into a store, give --store FOLDER")
    _learn(said, training)


def _learn(said: Said, training: Training) -> None:
    from ..lifelong import files, methods, read_stream

    assert said.model is not None and said.stream is not None
    stream = read_stream(said.stream)
    name = said.method or stream.method or "sequential"
    early.lifelong(name)
    options = parsed(methods.get(name), list(said.option), stream.options_of(said.method))
    with training(said, stream.name) as (bar, progress):
        found = files.run(
            said.model, stream, said.store or "store", method=said.method, options=options,
            evaluate=said.eval_file is not None, resume=said.resume, dry_run=said.dry_run, say=bar.say,
            progress=progress, **said.given(*HOW), **said.recipe,
        )  # fmt: skip
    if found is None:
        return
    typer.echo(table(found.record))
    for key, value in found.summary.items():
        if value is not None:
            typer.echo(f"{key.replace('_', ' ')}: {value:.4f}")
    typer.echo(found.folder)


def parsed(method: Any, pairs: list[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line; of a method whose adapter can be chosen, those of the adapter by its types. given:
    those of the file, which may name the adapter."""
    from ..core import parse
    from ..lifelong.registry import adapter_named
    from ..methods import get

    fields = method.config.__dataclass_fields__
    own = [p for p in pairs if "options" not in fields or p.partition("=")[0] in fields]
    out = parse(method.config, own)
    rest = [p for p in pairs if p not in own]
    if rest:
        out |= parse(get(str(adapter_named(method.name, given, out))).config, rest)
    return out


def table(record: Any) -> str:
    """The matrix as text: a line for each stage."""
    stages = record["stages"]
    names = [s["task"] for s in stages]
    rows = [("after", *names, "bytes")]
    for s in stages:
        found = s.get("scores") or {}
        rows.append((s["task"], *(f"{found[n]:.4f}" if n in found else "-" for n in names), f"{s['bytes']['all']:,}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths)).rstrip() for row in rows)
