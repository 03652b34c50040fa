"""The command line. One file per command; torch is loaded by the commands that need it, not by --help."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from . import (
    adapt,
    chat,
    compare,
    exchange,
    export,
    extract,
    generate,
    keys,
    merge,
    methods,
    plan,
    serve,
    share,
    statistics,
    store,
)
from .errors import explain, warned
from .flags import Peers

app = typer.Typer(
    name="commonweight",
    help="Weights held in common: one base model, many tenants, one small file each.\n\n"
    "Start with [bold]commonweight methods[/bold] to choose a method, then train a tenant with "
    "[bold]commonweight adapt[/bold].",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("adapt", cls=Peers, epilog=adapt.EXAMPLES)(adapt.command)
app.command("chat", epilog=chat.EXAMPLES)(chat.command)
app.command("compare", cls=Peers, epilog=compare.EXAMPLES)(compare.command)
app.command("export", epilog=export.EXAMPLES)(export.command)
app.command("extract", epilog=extract.EXAMPLES)(extract.command)
app.command("generate", epilog=generate.EXAMPLES)(generate.command)
app.command("merge", epilog=merge.EXAMPLES)(merge.command)
app.command("methods", epilog=methods.EXAMPLES)(methods.command)
app.command("plan", epilog=plan.EXAMPLES)(plan.command)
app.command("serve", epilog=serve.EXAMPLES)(serve.command)
app.command("share", epilog=share.EXAMPLES)(share.command)
app.command("statistics", epilog=statistics.EXAMPLES)(statistics.command)
app.add_typer(exchange.app, name="exchange", epilog=exchange.EXAMPLES)
app.add_typer(keys.app, name="keys", epilog=keys.EXAMPLES)
app.add_typer(store.app, name="store", epilog=store.EXAMPLES)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"commonweight {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Runs a command. A mistake of the user ends in one message on stderr and exit code 2, without a traceback."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else a line for each layer, at each step
    try:
        with warned():
            app(args)
    except Exception as e:
        message = explain(e)
        if message is None:
            raise
        typer.echo(f"commonweight: {message}", err=True)
        sys.exit(2)
