"""commonweight adapt: train one tenant on one data file, several together, or one that comes late to a common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

Several tenants that share parameters, trained together into a store; then one that comes late and costs its own numbers:

  commonweight adapt MODEL --tenants tenants.yaml --store store

  commonweight adapt MODEL cr.tsv --dev 0.1 --store store --common sentences --tenant cr

A run that was killed goes on where it stopped, and ends with the same bits:

  commonweight adapt ./my-model chats.jsonl --task lm --method lora --dev 0.1 --out tone.safetensors --resume
"""  # noqa: E501

DATA, METHOD, TRAINING, READING = "Data", "Method", "Training", "Reading the data"


def command(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the base model; it is never written.")],
    data: Annotated[
        str | None,
        typer.Argument(
            help="Training rows: a .jsonl, .csv, .tsv or .parquet file, or a hub data set.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The tenant's file, ending in .safetensors; a .json report lies beside it. With --tenants, a folder."
        ),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Publish into this store, in place of --out.")] = None,
    tenants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Train several tenants together: a YAML file that says which, on what and how."
        ),
    ] = None,
    common: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --store: come late to this common of the store. Its pools stay as they are; method, options and "
            "layers are those of its tenants.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classify: text and label. lm: text, prompt and completion, or messages. embed: pairs of texts. "
            "Without it, classify."
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant's name; without it, the name of the file.")] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="See `commonweight methods`; without it mos.", rich_help_panel=METHOD),
    ] = None,
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
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same bits (0).", rich_help_panel=TRAINING)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the frozen base: auto, float32 or bfloat16. auto: bfloat16 where the processor has it.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints (100).", rich_help_panel=TRAINING)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a killed run of the same settings.", rich_help_panel=TRAINING)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what was understood of the rows and stop before the first step. Nothing is written.",
            rich_help_panel=READING,
        ),
    ] = False,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text (embed: of the anchor).", rich_help_panel=READING)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the label (embed: of the positive).", rich_help_panel=READING)
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="lm: column of the prompt, which is not scored.", rich_help_panel=READING)
    ] = None,
    completion_column: Annotated[
        str | None, typer.Option(help="lm: column of the completion, which is scored.", rich_help_panel=READING)
    ] = None,
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="The first line of a CSV or TSV file is data.", rich_help_panel=READING),
    ] = False,
) -> None:
    """Train one tenant of a base model and write it to one small file, or publish it into a store.

    The base stays frozen. A CSV file has a header line; a TSV file may have one, of usual column names, or be one or
    two columns without. Quotation marks in TSV files are plain characters. With --tenants, several tenants are trained
    together; what the file says, no option says again.
    """
    from ..core import CommonweightError, parse, safe
    from ..methods import get

    numbers = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "max_length": max_length, "patience": patience,
        "checkpoint_every": checkpoint_every, "seed": seed,
    }  # fmt: skip
    recipe = {k: v for k, v in numbers.items() if v is not None}
    source = {
        "dev": dev, "text_column": text_column, "label_column": label_column, "prompt_column": prompt_column,
        "completion_column": completion_column, "no_header": no_header or None,
    }  # fmt: skip
    given = {"task": task, "sites": sites, "dtype": dtype, "codec": codec}
    if tenants is not None:
        said = {
            "DATA": data,
            "tenant": tenant,
            "common": common,
            "method": method,
            "option": option or None,
            "eval": eval_file,
        }
        if twice := [k for k, v in {**said, **given, **source, **numbers}.items() if v is not None]:
            flag = twice[0] if twice[0] == "DATA" else f"--{twice[0].replace('_', '-')}"
            raise CommonweightError(f"{flag} beside --tenants: say it in {tenants}, which says all but where to write")
        return _together(model, tenants, out, store, resume, dry_run)
    if data is None:
        raise CommonweightError("no DATA: name a file to train on, or a file of several tenants with --tenants")
    if (out is None) == (store is None) and not (dry_run and out is None):
        raise CommonweightError("where to? --out FILE.safetensors or --store FOLDER, one of them")
    if common is not None and store is None:
        raise CommonweightError(f"--common {common}: of which store? name it with --store")
    given = {k: v for k, v in given.items() if v is not None}
    source = {k: v for k, v in source.items() if v is not None}
    if store is not None:
        if tenant is None:
            raise CommonweightError("--store: the tenant needs a name, --tenant NAME")
        _publish(
            model, store, tenant, common, method, option or [], resume, dry_run,
            source={"data": data, "eval": eval_file, **source}, recipe=recipe, **given,
        )  # fmt: skip
        return
    from ..adapt import Job, Source
    from ..adapt.files import look, out_path, run

    if out is not None:
        out_path(out)
    name = safe(tenant or (out.stem if out is not None else "tenant"))
    method = method or "mos"
    options = parse(get(method).config, option or [])
    if out is None or dry_run:
        files = {name: Source(data=data, eval=eval_file, **source)}
        with _training() as bar:
            look(model, Job(tenants=files, method=method, options=options, recipe=recipe, **given), dry_run=True,
                 say=bar.say)  # fmt: skip
        return
    with _training() as bar:
        files = run(
            model, data, out, method=method, options=options, tenant=tenant, eval_file=eval_file, resume=resume,
            say=bar.say, progress=bar, **given, **source, **recipe,
        )  # fmt: skip
    if files.evaluated:
        typer.echo(line(task or "classify", files.evaluated))
    elif files.result.metrics:
        typer.echo(f"dev: {line(task or 'classify', files.result.metrics)}")
    t = files.result.tenant
    typer.echo(f"{files.tenant}: {t.method.name}, {t.count():,} parameters, {files.tenant.stat().st_size:,} bytes")


def _publish(
    model: str, store: Path, tenant: str, common: str | None, method: str | None, option: list[str], resume: bool,
    dry_run: bool, *, source: dict[str, Any], **given: Any,
) -> None:  # fmt: skip
    from ..adapt import Job, Source, run_late
    from ..adapt.together import method_of
    from ..core import parse
    from ..methods import get

    method = method or (method_of(store, common) if common is not None else "mos")
    options = parse(get(method).config, option)
    job = Job(tenants={tenant: Source(**source)}, method=method, options=options, common=common, **given)
    with _training() as bar:
        made = run_late(model, job, store, resume=resume, dry_run=dry_run, say=bar.say, progress=bar)
    if dry_run:
        return
    found = made[tenant]
    if metrics := found.evaluated or found.result.metrics:
        typer.echo(("" if found.evaluated else "dev: ") + line(job.task, metrics))
    t, w = found.result.tenant, found.written
    typer.echo(
        f"{w.where}: {t.method.name}, {t.count():,} parameters, {w.nbytes:,} bytes, {w.marginal:,} of them marginal"
    )


def _together(model: str, tenants: Path, out: Path | None, store: Path | None, resume: bool, dry_run: bool) -> None:
    from ..adapt import read_tenants, run_together

    job = read_tenants(tenants)
    with _training() as bar:
        found = run_together(
            model, job, out=out, store=store, resume=resume, dry_run=dry_run, say=bar.say, progress=bar
        )
    if dry_run:
        return
    rows = [("tenant", "metrics", "own bytes", "common bytes", "written to")]
    for name, o in found.items():
        metrics = o.evaluated or o.result.metrics
        told = (("" if o.evaluated else "dev: ") + line(job.task, metrics)) if metrics else ""
        rows.append((name, told, f"{o.written.own:,}", f"{o.written.common:,}", o.written.where))
    widths = [max(map(len, column)) for column in zip(*rows)]
    typer.echo("\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths)).rstrip() for row in rows))


@contextmanager
def _training() -> Iterator[Bar]:
    """A progress bar; and what to do after Ctrl-C."""
    try:
        with Bar() as bar:
            yield bar
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None


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
            # of several tenants, each one's metric that is watched: the first, as of the mean
            first = next(iter(p.dev))
            each = [(k, v) for k, v in p.dev.items() if k.endswith(f"/{first}")]
            told = [(first, p.dev[first]), *each] if each else [(k, v) for k, v in p.dev.items() if k != "n"]
            self.say(f"step {p.step}/{p.steps}: dev " + ", ".join(f"{k} {v:.4f}" for k, v in told))
