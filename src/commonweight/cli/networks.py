"""commonweight exchange on real networks: apps of Flower, processes of torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

APP = """[bold]Examples[/bold]

An app for 16 clients that Flower simulates, or that runs on its servers; --set takes what exchange simulate has:

  commonweight exchange app ./my-model rows.tsv --method fed-sb --clients 16 --rounds 20 --set split=dirichlet:0.3 --out app
  flwr run app

Nodes with rows of their own: the app has the labels alone, each node its file:

  commonweight exchange app ./my-model --labels yes,no --clients 3 --out app
  flower-supernode --superlink HOST:8000 --root-certificates ca.crt --node-config 'client=0 rows="/data/mine.tsv"'
"""  # noqa: E501

DILOCO = """[bold]Examples[/bold]

Two processes of this machine, 30 steps between two messages, outer gradients of 4 bits:

  torchrun --nproc-per-node 2 -m commonweight exchange diloco ./my-model rows.tsv -o steps=30 -o bits=4 --out t.safetensors

Streaming: two fragments in turn, two steps of overlap. Processes that may die and come back, one command each:

  torchft_lighthouse --min_replicas 2 --bind 0.0.0.0:29510
  commonweight exchange diloco ./my-model rows.tsv -o steps=30 -o fragments=2 -o delay=2 -o alpha=0.5 --lighthouse http://HOST:29510 --clients 2 --client 0 --out t.safetensors
"""  # noqa: E501


def numbers(pairs: list[str], **more: Any) -> dict[str, Any]:
    """Rounds and local steps from NAME=VALUE and from options of their own."""
    from ..core import parse
    from ..exchange.local import Local, Rounds

    mine = [p for p in pairs if p.partition("=")[0].replace("-", "_") in Rounds.__dataclass_fields__]  # type: ignore[attr-defined]
    given = parse(Rounds, mine) | parse(Local, [p for p in pairs if p not in mine])
    return given | {k: v for k, v in more.items() if v is not None}


def app(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the base model.")],
    out: Annotated[Path, typer.Option(help="Folder for the app.")],
    rows: Annotated[str | None, typer.Argument(help="Rows of which clients without a file take a part.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="How it is exchanged; see exchange methods.")] = (
        "fedavg"
    ),
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method.")
    ] = None,
    task: Annotated[str, typer.Option(help="classify or lm.")] = "classify",
    labels: Annotated[str | None, typer.Option(help="Labels, with commas between; else those of the rows.")] = None,
    eval_file: Annotated[str | None, typer.Option("--eval", help="Rows on which the server measures.")] = None,
    clients: Annotated[int | None, typer.Option(help="How many (16).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds (20).")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option of exchange simulate: lr=0.01, sample=50."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels.")] = None,
    no_header: Annotated[bool, typer.Option("--no-header", help="The first line is a row.")] = False,
    sites: Annotated[str | None, typer.Option(help="Pattern of layers to adapt.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of the server's run (the app's name and -run).")] = None,
    floats: Annotated[
        bool, typer.Option("--floats", help="Send plain arrays, as Flower's mods of differential privacy want them.")
    ] = False,
    wait: Annotated[float, typer.Option(help="Seconds for clients to come.")] = 60.0,
    timeout: Annotated[float, typer.Option(help="Seconds of a round.")] = 600.0,
    dtype: Annotated[str, typer.Option(help="Of the base: auto, float32, bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the app that lies there.")] = False,
) -> None:
    """Write a Flower app: flwr run takes it, in its simulation or on real servers and nodes."""
    from . import early

    early.model(model, task)
    early.exchange(method, option or [])
    early.one_of("task", task, ("classify", "lm"))
    early.dtype(dtype)
    early.rows(*([rows] if rows else []), eval_file)
    recipe = numbers(more or [], clients=clients, rounds=rounds, seed=seed)
    early.exchange_recipe(recipe)
    from ..exchange.files import options
    from ..exchange.flower import app as write

    write(
        model, out, method=method, options=options(method, option or []), rows=rows, eval_file=eval_file, task=task,
        labels=[x.strip() for x in labels.split(",")] if labels else None, sites=sites, state=state, wait=wait,
        floats=floats, timeout=timeout, dtype=dtype, no_header=no_header, overwrite=overwrite,
        columns={"text-column": text_column, "label-column": label_column}, **recipe,
    )  # fmt: skip
    typer.echo(f"{out}: flwr run {out}")


def diloco(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the base model.")],
    rows: Annotated[str, typer.Argument(help="Rows; each process trains on its part.")],
    out: Annotated[Path, typer.Option(help="File for the tenant.")],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="Of diloco, see exchange methods diloco."),
    ] = None,
    task: Annotated[str, typer.Option(help="classify or lm.")] = "classify",
    eval_file: Annotated[str | None, typer.Option("--eval", help="Rows on which the tenant is measured.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds (20).")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option of exchange simulate: lr=0.01, codec=int4."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels.")] = None,
    no_header: Annotated[bool, typer.Option("--no-header", help="The first line is a row.")] = False,
    sites: Annotated[str | None, typer.Option(help="Pattern of layers to adapt.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the base: auto, float32, bfloat16.")] = "auto",
    state: Annotated[Path | None, typer.Option(help="Folder for the last rounds of every process.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --state, to the same bits.")] = False,
    lighthouse: Annotated[str | None, typer.Option(help="torchft's, http://HOST:PORT: processes may come and go.")] = (
        None
    ),
    client: Annotated[int | None, typer.Option(help="With --lighthouse: which one this is, from 0.")] = None,
    clients: Annotated[int | None, typer.Option(help="With --lighthouse: how many there are.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
) -> None:
    """Train one tenant in several processes that seldom talk: DiLoCo, Streaming DiLoCo."""
    from . import early

    early.model(model, task)
    early.exchange("diloco", option or [])
    early.one_of("task", task, ("classify", "lm"))
    early.dtype(dtype)
    early.rows(rows, eval_file)
    recipe = numbers(more or [], rounds=rounds, seed=seed)
    early.exchange_recipe(recipe)
    from ..exchange.replicas.files import run
    from .progress import quiet

    quiet()
    done, found = run(
        model, rows, out, pairs=option or [], task=task, eval_file=eval_file, text_column=text_column,
        label_column=label_column, no_header=no_header, sites=sites, dtype=dtype, lighthouse=lighthouse, client=client,
        clients=clients, state=state, resume=resume, say=typer.echo, **recipe,
    )  # fmt: skip
    if done.carrier.client == 0 or lighthouse:
        up = sum(r["up"] for r in done.curve)
        typer.echo(f"{out}: {done.p.setting.count:,} numbers, {up:,} bytes sent" + "".join(
            f", {k} {v:.4f}" for k, v in found.items()
        ))  # fmt: skip


def add(to: typer.Typer) -> None:
    to.command("diloco", epilog=DILOCO)(diloco)
    to.command("app", epilog=APP)(app)
