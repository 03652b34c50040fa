"""commonweight adapt: train one tenant on one data file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..adapt import Progress

EXAMPLES = """[bold]Examples[/bold]

A classifier of six classes, measured on a test file:

  commonweight adapt sentence-transformers/all-MiniLM-L6-v2 train.tsv --method mos -o rank=8 --eval test.tsv --out legal.safetensors

A language model on prompt and completion, with a tenth of the rows held out:

  commonweight adapt ./my-model chats.jsonl --task lm --method lora --dev 0.1 --out tone.safetensors

A run that was killed goes on where it stopped, and ends with the same bits:

  commonweight adapt ./my-model chats.jsonl --task lm --method lora --dev 0.1 --out tone.safetensors --resume
"""  # noqa: E501

DATA, METHOD, TRAINING, READING = "Data", "Method", "Training", "Reading the data"


def command(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the base model; it is never written.")],
    data: Annotated[
        str, typer.Argument(help="Training rows: a .jsonl, .csv, .tsv or .parquet file, or a hub data set.")
    ],
    out: Annotated[
        Path, typer.Option(help="The tenant's file, ending in .safetensors; a .json report lies beside it.")
    ],
    task: Annotated[
        str,
        typer.Option(
            help="classify: text and label. lm: text, prompt and completion, or messages. embed: pairs of texts."
        ),
    ] = "classify",
    tenant: Annotated[str | None, typer.Option(help="The tenant's name; without it, the name of the file.")] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="See `commonweight methods`.", rich_help_panel=METHOD)
    ] = "mos",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="An option of the method; may be repeated.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Which layers, as a pattern: '*.query|*.value'. Without it, the method's own.", rich_help_panel=METHOD
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Store the pools in fewer bytes: bfloat16, int8, int4 or compeft. What is measured is what the file "
            "holds.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    eval_file: Annotated[
        str | None,
        typer.Option("--eval", metavar="FILE", help="Rows to measure the trained tenant on.", rich_help_panel=DATA),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FRACTION",
            help="Rows, or a share of the training rows, measured after each epoch: keeps the best, stops early.",
            rich_help_panel=DATA,
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data (3; more for few rows).", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step (32).", rich_help_panel=TRAINING)] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate (the method's own).", rich_help_panel=TRAINING)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens per row (128; lm: 512).", rich_help_panel=TRAINING)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Epochs without a better dev score before it stops (3).", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bits.", rich_help_panel=TRAINING)] = 0,
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the frozen base: auto, float32 or bfloat16. auto: bfloat16 where the processor has it.",
            rich_help_panel=TRAINING,
        ),
    ] = "auto",
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints (100).", rich_help_panel=TRAINING)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a killed run of the same settings.", rich_help_panel=TRAINING)
    ] = False,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text (embed: of the anchor).", rich_help_panel=READING)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the label (embed: of the positive).", rich_help_panel=READING)
    ] = None,
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="The first line of a CSV or TSV file is data.", rich_help_panel=READING),
    ] = False,
) -> None:
    """Train one tenant of a base model and write it to one small file.

    The base stays frozen. A CSV file has a header line; a TSV file may have one, of usual column names, or be one or
    two columns without. Quotation marks in TSV files are plain characters.
    """
    from ..adapt.files import out_path, run
    from ..core import parse, safe
    from ..methods import get

    out_path(out)
    safe(out.stem if tenant is None else tenant)
    options = parse(get(method).config, option or [])
    numbers = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "max_length": max_length, "patience": patience,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    try:
        with Bar() as bar:
            files = run(
                model, data, out, task=task, method=method, options=options, tenant=tenant, eval_file=eval_file,
                dev=dev, dtype=dtype, sites=sites, text_column=text_column, label_column=label_column,
                no_header=no_header, resume=resume, codec=codec,
                seed=seed, say=bar.say, progress=bar, **{k: v for k, v in numbers.items() if v is not None},
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    if files.evaluated:
        typer.echo(line(task, files.evaluated))
    elif files.result.metrics:
        typer.echo(f"dev: {line(task, files.result.metrics)}")
    t = files.result.tenant
    typer.echo(f"{files.tenant}: {t.method.name}, {t.count():,} parameters, {files.tenant.stat().st_size:,} bytes")


def line(task: str, metrics: dict[str, float]) -> str:
    """One line per measurement; its form does not change, scripts may read it."""
    tail = f" (n={int(metrics['n'])})" if "n" in metrics else ""
    if task == "lm":
        return f"loss {metrics['loss']:.4f} bits per byte {metrics['bits_per_byte']:.4f}{tail}"
    if task == "embed":
        return f"loss {metrics['loss']:.4f} retrieval accuracy {metrics['accuracy']:.4f}{tail}"
    return f"accuracy {metrics['accuracy']:.4f}{tail}"


class Bar:
    """A progress bar on stderr where that is a terminal; elsewhere one line per dev measurement."""

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.console = Console(stderr=True, highlight=False)
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        text = TextColumn("loss {task.fields[loss]:.3f}")
        self.bar = Progress(*columns, text, console=self.console, disable=not self.console.is_terminal)
        self.row: Any = None
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def __call__(self, p: Progress) -> None:
        if self.row is None:
            self.row = self.bar.add_task(p.tenant, total=p.steps, loss=p.loss)
        self.bar.update(self.row, completed=p.step, loss=p.loss)
        if p.dev is not None:
            self.say(f"step {p.step}/{p.steps}: dev " + ", ".join(f"{k} {v:.4f}" for k, v in p.dev.items() if k != "n"))
