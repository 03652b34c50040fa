"""commonweight share: a smaller model whose layers and matrices read common pools, healed and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = """[bold]Examples[/bold]

What every method would make of a model; nothing runs:

  commonweight share ./my-model --plan

Half the layers, each used twice, with an update of rank 16 for each use, healed by the original on two million tokens:

  commonweight share ./my-model --method recursive -o loops=2 -o relax=16 --heal rows.jsonl --tokens 2M --eval held-out.txt --out small

The same as two stock folders for PEFT:

  commonweight share ./my-model --method recursive -o loops=2 --form peft --out small
"""  # noqa: E501

HEALING = "Healing"


def command(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the model; it is never written.")],
    out: Annotated[Path | None, typer.Option(help="The new folder.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="How it is shared (recursive); --plan lists all.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method; may be repeated."),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Print bytes, parameters, FLOPs and cache of every method at several sizes, or of -m and -o."
        ),
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            help="remote-code: any model. peft: two stock folders. albert: a looped BERT. unrolled: every depth."
        ),
    ] = "remote-code",
    rows: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Text that a method looks at to choose layers; without it, that of --heal."),
    ] = None,
    heal: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Rows or a .txt to heal on, taught by MODEL.", rich_help_panel=HEALING),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="How many tokens to heal on: 500k, 2M; else one pass.", rich_help_panel=HEALING)
    ] = None,
    eval_file: Annotated[
        str | None,
        typer.Option("--eval", metavar="FILE", help="Rows or a .txt on which both models are measured."),
    ] = None,
    dev: Annotated[
        float | None,
        typer.Option(help="Share of the rows held out; the best state is kept.", rich_help_panel=HEALING),
    ] = None,
    loss: Annotated[
        str, typer.Option(help="forward-kl, reverse-kl, jsd or tvd.", rich_help_panel=HEALING)
    ] = "forward-kl",
    lr: Annotated[float | None, typer.Option(help="Learning rate (2e-4).", rich_help_panel=HEALING)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences at a time (8).", rich_help_panel=HEALING)] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a sequence (512).", rich_help_panel=HEALING)] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.", rich_help_panel=HEALING)
    ] = False,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16",
            help="Compute in bfloat16, keep the numbers in float32: often twice as fast.",
            rich_help_panel=HEALING,
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a killed run, to the same bits.", rich_help_panel=HEALING)
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.", rich_help_panel=HEALING)] = 0,
) -> None:
    """Make a model smaller: its layers or matrices read common pools; heal it, measure it, write it."""
    from ..core import CommonweightError
    from . import early

    early.model(model)
    early.sharing(method, option or [])
    if plan:
        return _plan(model, method, option or [])
    if out is None:
        raise CommonweightError("no output: give --out FOLDER, or --plan")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommonweightError(f"{out}: it is there already; choose another folder")
    of_healing = {"--tokens": tokens, "--dev": dev, "--lr": lr, "--resume": resume or None}
    if heal is None and (given := [flag for flag, v in of_healing.items() if v is not None]):
        raise CommonweightError(f"{given[0]} is of healing; name the rows with --heal FILE")
    texts = [s for s in (heal, eval_file, rows) if s is not None]
    early.files(s for s in texts if s.endswith(".txt"))
    early.rows(*(s for s in texts if not s.endswith(".txt")))
    early.form(form)
    early.amount(tokens)
    numbers = {"lr": lr, "batch_size": batch_size, "max_length": max_length, "seed": seed}
    recipe: dict[str, Any] = {k: v for k, v in numbers.items() if v is not None}
    early.recipe(recipe)
    from ..share.run import run
    from .progress import Bar

    recipe |= {"gradient_checkpointing": gradient_checkpointing, "bf16": bf16}
    with Bar() as bar:
        run(
            model, out, method=method or "recursive", option=option or [], form=form, rows=rows, heal=heal,
            tokens=tokens, eval_file=eval_file, dev=dev, loss=loss, resume=resume, say=bar.say, progress=bar,
            recipe=recipe,
        )  # fmt: skip


def _plan(model: str, method: str | None, option: list[str]) -> None:
    from ..core import parse
    from ..share.cost import plan
    from ..share.methods import get

    name = method or ("recursive" if option else None)
    asked = None if name is None else {name: [parse(get(name).config, option)]}
    found = plan(model, asked)
    first = found[0]
    lines = [("method", "depth", "parameters", "bytes", "of all", "of blocks", "MFLOPs/token", "cache B/token")]
    for c in found:
        shares = f"{c.bytes / first.bytes:.1%}", f"{c.blocks / first.blocks:.1%}"
        numbers = f"{c.parameters:,}", f"{c.bytes:,}", *shares, f"{c.flops / 1e6:,.1f}", f"{c.cache:,}"
        lines.append((c.method, f"{c.depth}", *numbers))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for name, *rest in lines:
        cells = (f"{text:>{w}}" for text, w in zip(rest, widths[1:]))
        typer.echo("  ".join([f"{name:<{widths[0]}}", *cells]).rstrip())
