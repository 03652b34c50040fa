"""commonweight exchange: one model tuned by many clients that send each other almost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import networks

EXAMPLES = """[bold]Examples[/bold]

Which methods there are, and what a client sends with each:

  commonweight exchange methods

A thousand clients, each with few labels of its own, 50 of them a round; rows of one process stand for all of them:

  commonweight exchange simulate ./my-model rows.tsv --method fed-sb --clients 1000 --sample 50 --rounds 20 --split dirichlet:0.3 --eval test.tsv --out run

A page with accuracy against bytes, also while it runs; and the tenant that came of it:

  commonweight exchange report run
  commonweight store list run/store
"""  # noqa: E501
SIMULATE = """[bold]Examples[/bold]

The baseline, LoRA of rank 16, averaged; and a client for each value of a column, with heads that stay where they are:

  commonweight exchange simulate ./my-model rows.tsv --method fedavg -o rank=16 --clients 16 --rounds 20 --out lora
  commonweight exchange simulate ./my-model rows.tsv --split column:hospital --private "*head*" --holdout 0.2 --out own

Beside a common that lies in a store: what is a tenant's own is trained and travels, the common's pools do not:

  commonweight exchange simulate ./my-model rows.tsv --store shop --common sentences --out late

Fed-SB in four bits up and eight down; what a codec loses is sent with the next message, on both sides:

  commonweight exchange simulate ./my-model rows.tsv --method fed-sb --codec int4 --codec-down int8 --codec-feedback both --out few

A third of the clients never answers, the others differ in speed, and a round waits for twice the median's time:

  commonweight exchange simulate ./my-model rows.tsv --clients 100 --vanish 0.3 --spread 0.5 --deadline 2 --out hard
"""  # noqa: E501
ROUNDS, LOCAL, DATA, NETWORK = "Rounds", "What a client does", "Rows", "What goes wrong (simulated)"
PRIVACY = "Differential privacy of clients"
CODECS = "Messages in fewer bits"

app = typer.Typer(
    no_args_is_help=True,
    help="Tune one model with many clients: each trains on its own rows and sends a few kilobytes a round.",
)


@app.command("methods", epilog="The options of one: commonweight exchange methods fed-sb")
def methods(
    name: Annotated[str | None, typer.Argument(help="A method: its options, and what it sends.")] = None,
) -> None:
    """List the exchange methods: what travels, what the server keeps."""
    from rich.console import Console

    from . import early
    from .methods import options_table

    early.exchange(name)
    from ..exchange.methods import available, get

    console = Console(highlight=False)
    if name is not None:
        m = get(name)
        console.print(f"{m.name}: {m.paper}", markup=False)
        for what, text in facts_of(m).items():
            console.print(f"{what}: {text}", markup=False)
        console.print(options_table(m.config))
        return
    from rich.table import Table

    table = Table(title="Exchange methods", title_justify="left", show_lines=True)
    for head in ("name", "paper", "trained pools", "bytes of a client and round", "the server keeps", "exact"):
        table.add_column(head, overflow="fold", no_wrap=head == "name")
    for m in available().values():
        table.add_row(m.name, m.paper, m.trains, m.formula, m.keeps, "yes" if m.exact else "no")
    console.print(table)


def facts_of(m: Any) -> dict[str, str]:
    """What a person wants to know of an exchange method, in words."""
    return {
        "trained pools": m.trains,
        "bytes of a client and round": f"{m.formula} (p: numbers that travel), and a frame of some 300 bytes",
        "the server keeps": m.keeps,
        "a client keeps": m.each,
        "the mean is exact": "yes" if m.exact else "no: that of the factors is not that of the updates",
        "clients in one mixed batch": m.apart or "yes",
        "noise for privacy": m.noise or "yes: --dp-noise and --dp-clip",
        "codecs": "by its own options" if m.coding else m.uncoded(m.config(), "up") or "yes: --codec, --codec-down",
    }


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run, --out of simulate.")],
    beside: Annotated[list[Path] | None, typer.Argument(help="Other runs, whose curves are drawn too.")] = None,
) -> None:
    """Write a page: accuracy against bytes, every round, every client. Also while the run goes on."""
    from ..exchange.page import report as write

    typer.echo(write(run, beside or ()))


@app.command("simulate", epilog=SIMULATE)
def simulate(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the base model.")],
    rows: Annotated[list[str], typer.Argument(help="Rows of all clients; several files for --split files.")],
    out: Annotated[Path, typer.Option(help="Folder for run.json, the store and the state.")],
    method: Annotated[str, typer.Option("--method", "-m", help="How it is exchanged; see exchange methods.")] = (
        "fedavg"
    ),
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="An option of the method; of fedavg also adapter=NAME and that adapter's own.",
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="classify or lm.")] = "classify",
    store: Annotated[str | None, typer.Option(help="The store of --common; the run's own is OUT/store.")] = None,
    common: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --store: clients train late tenants of this common, whose pools do not change and never travel.",
        ),
    ] = None,
    eval_file: Annotated[
        str | None, typer.Option("--eval", help="Rows on which the global tenant is measured.", rich_help_panel=DATA)
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(help="Share of each client's rows that its own model is measured on.", rich_help_panel=DATA),
    ] = 0.0,
    text_column: Annotated[str | None, typer.Option(help="Column of texts.", rich_help_panel=DATA)] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels.", rich_help_panel=DATA)] = None,
    prompt_column: Annotated[str | None, typer.Option(help="lm: column of prompts.", rich_help_panel=DATA)] = None,
    completion_column: Annotated[
        str | None, typer.Option(help="lm: column of completions.", rich_help_panel=DATA)
    ] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="The first line is a row.", rich_help_panel=DATA)
    ] = False,
    clients: Annotated[
        int | None, typer.Option(help="How many (16); column and files bring their own.", rich_help_panel=ROUNDS)
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds (20).", rich_help_panel=ROUNDS)] = None,
    sample: Annotated[
        int | None, typer.Option(help="Clients of a round, drawn anew (all).", rich_help_panel=ROUNDS)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="iid (the default), dirichlet:0.3, labels:2, column:NAME, files.", rich_help_panel=ROUNDS),
    ] = None,
    minimum: Annotated[
        int | None, typer.Option(help="Replies below which a round changes nothing (1).", rich_help_panel=ROUNDS)
    ] = None,
    weigh: Annotated[
        str | None,
        typer.Option(
            help="Replies are weighed by their rows, or all alike: rows, clients (rows).", rich_help_panel=ROUNDS
        ),
    ] = None,
    private: Annotated[
        str | None, typer.Option(help="Pattern of pools that stay with a client: *head*.", rich_help_panel=ROUNDS)
    ] = None,
    dp_noise: Annotated[
        float | None,
        typer.Option(help="Noise of the sum of changes, over --dp-clip; epsilon is printed.", rich_help_panel=PRIVACY),
    ] = None,
    dp_clip: Annotated[
        float | None, typer.Option(help="Largest norm of a client's change in a round.", rich_help_panel=PRIVACY)
    ] = None,
    dp_delta: Annotated[
        float | None, typer.Option(help="delta of (epsilon, delta) (1e-5).", rich_help_panel=PRIVACY)
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Rounds between measurements (1).", rich_help_panel=ROUNDS)
    ] = None,
    mixed: Annotated[
        int | None,
        typer.Option(help="Rows of one batch of several clients (256); 1: one by one.", rich_help_panel=ROUNDS),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over its rows a round (1).", rich_help_panel=LOCAL)] = (
        None
    ),
    steps: Annotated[int | None, typer.Option(help="Steps a round, in place of epochs.", rich_help_panel=LOCAL)] = (
        None
    ),
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step (8).", rich_help_panel=LOCAL)] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the first round (the adapter's).", rich_help_panel=LOCAL)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Over the rounds: linear, constant (linear).", rich_help_panel=LOCAL)
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, sgd (adamw).", rich_help_panel=LOCAL)] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd (0).", rich_help_panel=LOCAL)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of adamw (0).", rich_help_panel=LOCAL)] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of a client's gradient (1); 0: none.", rich_help_panel=LOCAL)
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per row (128, lm 512).", rich_help_panel=LOCAL)] = None,
    sites: Annotated[str | None, typer.Option(help="Pattern of layers to adapt.", rich_help_panel=LOCAL)] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="What clients send: int8, int4, bfloat16, compeft:density=0.1, l-greco.", rich_help_panel=CODECS
        ),
    ] = None,
    codec_down: Annotated[
        str | None, typer.Option(help="The same of what comes down to them.", rich_help_panel=CODECS)
    ] = None,
    codec_feedback: Annotated[
        str | None,
        typer.Option(help="Who makes up for what a codec lost: none, clients, both (clients).", rich_help_panel=CODECS),
    ] = None,
    vanish: Annotated[
        float | None, typer.Option(help="Share of clients that never answer (0).", rich_help_panel=NETWORK)
    ] = None,
    spread: Annotated[
        float | None, typer.Option(help="Sigma of clients' log speeds (0).", rich_help_panel=NETWORK)
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(help="A round ends at so many times the median's time (never).", rich_help_panel=NETWORK),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the base: auto, float32, bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run, to the same bits.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that lies there.")] = False,
) -> None:
    """Simulate clients in this process: those of a round train in mixed batches on one base."""
    from ..core import CommonweightError
    from . import early

    early.model(model, task)
    if store is not None and common is None:
        raise CommonweightError("--store is that of --common; the run's own store is OUT/store. Leave it out")
    early.exchange(method, (option or []) if common is None else [])  # else the options are of the common's method
    early.one_of("task", task, ("classify", "lm"))
    early.dtype(dtype)
    early.device(device)
    early.rows(*rows, eval_file)
    numbers = {
        "clients": clients, "rounds": rounds, "sample": sample, "split": split, "minimum": minimum, "weigh": weigh,
        "private": private, "eval_every": eval_every, "mixed": mixed, "epochs": epochs, "steps": steps,
        "batch_size": batch_size, "lr": lr, "schedule": schedule, "optimizer": optimizer, "momentum": momentum,
        "weight_decay": weight_decay, "clip": clip, "max_length": max_length, "vanish": vanish, "spread": spread,
        "deadline": deadline, "seed": seed, "dp_noise": dp_noise, "dp_clip": dp_clip, "dp_delta": dp_delta,
        "codec": codec, "codec_down": codec_down, "codec_feedback": codec_feedback,
    }  # fmt: skip
    recipe = {k: v for k, v in numbers.items() if v is not None}
    early.exchange_recipe(recipe)
    if len(rows) > 1 and (split or "") != "files":
        raise CommonweightError(f"{len(rows)} files of rows: each is a client with --split files; else give one file")
    from ..exchange.files import run
    from .rounds import Bar

    how = {
        "text_column": text_column, "label_column": label_column, "prompt_column": prompt_column,
        "completion_column": completion_column,
    }  # fmt: skip
    try:
        with Bar() as bar:
            made = run(
                model, rows, out, method=method, pairs=option or [], task=task, eval_file=eval_file, holdout=holdout,
                store=store, common=common, no_header=no_header, sites=sites, dtype=dtype, device=device, resume=resume,
                overwrite=overwrite, say=bar.say, progress=bar, **how, **recipe,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on after the last whole round", err=True)
        raise typer.Exit(130) from None
    last = made.curve[-1] if made.curve else {}
    if made.metric in last:
        typer.echo(f"{made.metric} {last[made.metric]:.4f}")
    if made.setting.privacy is not None:
        from ..exchange.privacy import told, words

        rounds_of_one = max((s.rounds for s in made.seats.values()), default=0)
        typer.echo(words(told(made.setting.privacy, rounds_of_one)))
    n = max(1, len(made.seats))
    typer.echo(
        f"{out}: {made.method.name}, {made.setting.count:,} numbers travel; of a client {made.up / n:,.0f} bytes up "
        f"and {made.down / n:,.0f} down in all"
    )


networks.add(app)
