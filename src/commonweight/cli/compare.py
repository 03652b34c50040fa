"""commonweight compare: methods at equal bytes, with error bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core import counted

if TYPE_CHECKING:
    from ..compare import Progress

EXAMPLES = """[bold]Examples[/bold]

Three methods at three sizes on two tasks, three seeds each; tests and dev rows lie beside the training files:

  commonweight compare sentence-transformers/all-MiniLM-L6-v2 trec.train.tsv sst2.train.tsv --methods lora,mos,vb-lora --budgets 16KB,64KB,256KB --report comparison

Eight trials of the learning rate for every method, in two processes:

  commonweight compare ./my-model a.train.tsv --methods lora,lora-xs --budgets 64KB --trials 8 --jobs 2

A comparison that was stopped goes on with the same command.
"""  # noqa: E501

DATA, METHODS, TRAINING, RUNNING = "Data", "Methods", "Training", "Running"


def command(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the base model; it is never written.")],
    data: Annotated[list[str], typer.Argument(help="Training files, one per task: .jsonl, .csv, .tsv or .parquet.")],
    methods: Annotated[
        str, typer.Option(help="Names separated by commas, or all.", rich_help_panel=METHODS)
    ],
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Sizes of the saved pools without the head, as in 4KB,64KB. default among them: those "
            "methods that fit no size, at their defaults. Without it, each method at its defaults.",
            rich_help_panel=METHODS,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="METHOD.NAME=VALUE", help="Fix an option of a method; may be repeated.",
            rich_help_panel=METHODS,
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Store the pools in fewer bytes before measuring: bfloat16, int8, int4, onebit or "
            "compeft:density=0.05.",
            rich_help_panel=METHODS,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The method to compare the others with (lora, else the first).", rich_help_panel=METHODS),
    ] = None,
    sites: Annotated[
        str | None, typer.Option(help="Which layers, as a pattern (each method's own).", rich_help_panel=METHODS)
    ] = None,
    eval_file: Annotated[
        list[str] | None,
        typer.Option("--eval", metavar="FILE", help="Test files in the order of DATA; without them, NAME.test.* beside "
                     "NAME.train.*.", rich_help_panel=DATA),
    ] = None,
    dev: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|FRACTION", help="Dev files in the order of DATA, or a share of the training rows; "
                     "without it, NAME.dev.* or a tenth.", rich_help_panel=DATA),
    ] = None,
    task: Annotated[str, typer.Option(help="classify, lm or embed.", rich_help_panel=DATA)] = "classify",
    text_column: Annotated[str | None, typer.Option(help="Column of the text.", rich_help_panel=DATA)] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label.", rich_help_panel=DATA)] = None,
    seeds: Annotated[int, typer.Option(help="Runs of every config on every task.", rich_help_panel=TRAINING)] = 3,
    trials: Annotated[
        int,
        typer.Option(help="Learning rates tried per config and task, by successive halving on the dev rows; 0: the "
                     "method's own.", rich_help_panel=TRAINING),
    ] = 0,
    tune_on: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Try the rates on this task alone, and use the best on all.",
                     rich_help_panel=TRAINING),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data (3; more for few rows).", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step (32).", rich_help_panel=TRAINING)] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per row.", rich_help_panel=TRAINING)] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without a better dev score.", rich_help_panel=TRAINING)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype of the frozen base: auto, float32 or bfloat16.", rich_help_panel=TRAINING)
    ] = "auto",
    cache: Annotated[
        Path, typer.Option(help="Folder of finished runs; these are not repeated.", rich_help_panel=RUNNING)
    ] = Path("compare-cache"),
    jobs: Annotated[int, typer.Option(help="Processes at a time on this machine.", rich_help_panel=RUNNING)] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address; auto: the running one; "
                     "local: one on this machine.",
                     rich_help_panel=RUNNING),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write index.html (one page that needs no network), table.md, results.json.",
                     rich_help_panel=RUNNING),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing --report.", rich_help_panel=RUNNING)
    ] = False,
) -> None:  # fmt: skip
    """Compare methods at equal bytes: accuracy with its interval, bytes, memory, time, and the Pareto front.

    For every method and budget the largest config that fits is taken from the method's plan. All are trained by one
    recipe, with as many trials of the learning rate for each. Finished runs are kept in the cache.
    """
    from . import early

    for name in [m.strip() for m in methods.split(",")] if methods != "all" else ():
        early.method(name or None)
    task = early.task(task, early.names.COMPARED) or "classify"
    early.dtype(dtype)
    early.codec(codec)
    early.model(model)
    if len(eval_file or data) == len(data):  # else that is what is wrong
        early.rows(*data, *(eval_file or ()), *(dev or ()))

    from ..compare import Cache, Comparison, compare, find, parse_methods, parse_options, points, workers
    from ..compare.page import ready, write
    from ..compare.table import terminal

    numbers = {"epochs": epochs, "batch_size": batch_size, "max_length": max_length, "patience": patience}
    wanted = Comparison(
        model, find(data, eval_file or (), dev or ()), parse_methods(methods),
        tuple(b.strip() for b in budgets.split(",") if b.strip()) if budgets is not None else (),
        seeds, trials, task, parse_options(option or ()), {k: v for k, v in numbers.items() if v is not None},
        dtype, sites, text_column, label_column, against, codec, tune_on,
    )  # fmt: skip
    if budgets is not None and not wanted.budgets:
        raise typer.BadParameter("no budget in it; wanted sizes such as 4KB,64KB, or default", param_hint="--budgets")
    if report is not None:
        ready(report, overwrite)
    held = Cache(cache)
    try:
        with Bars() as bars, workers(jobs, ray, "commonweight.compare") as run:
            outcome = compare(wanted, run, held, bars.say, bars)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {len(held)} finished runs are in {cache}; the same command goes on", err=True)
        raise typer.Exit(130) from None
    found = points(outcome)
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(terminal(outcome, found, console.width))
    for p in found:
        for message in p.failed:
            typer.echo(f"{p.name}: {message}", err=True)
    if report is not None:
        typer.echo(
            f"{write(report, outcome, found, overwrite=overwrite)}: {counted(len(found), 'config')}, "
            f"{counted(len(outcome.runs), 'run')}"
        )


class Bars:
    """Progress bars on stderr where that is a terminal; elsewhere a line per finished run."""

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False)
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        last = TextColumn("{task.fields[label]}", markup=False)
        self.bar = Progress(*columns, last, console=self.console, disable=not self.console.is_terminal)
        self.rows: dict[str, Any] = {}
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def __call__(self, p: Progress) -> None:
        names = {"tune": "tuning", "run": "runs"}
        if p.stage not in self.rows:
            self.rows[p.stage] = self.bar.add_task(names[p.stage], total=p.total, label="")
        tail = "" if p.score is None else f": {p.score:.4f}"
        self.bar.update(self.rows[p.stage], completed=p.done, label=p.label + tail)
        if p.label and not self.console.is_terminal:
            self.say(f"{names[p.stage]} {p.done}/{p.total}: {p.label}{tail}")
