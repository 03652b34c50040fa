"""commonweight keys: who may ask a server, and for what. The file holds digests; a key is shown once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """[bold]Examples[/bold]

A key for two tenants, 60 requests a minute at most; it is printed once and stands nowhere:

  commonweight keys add team-a --file keys.json --tenants legal,support --limit 60/min

One that may change tenants:

  commonweight keys add operator --file keys.json --admin

A server that runs takes changes of the file at its next request:

  commonweight keys remove team-a --file keys.json
"""

app = typer.Typer(no_args_is_help=True, help="Keys of a server: make, list and withdraw them.")
File = Annotated[Path, typer.Option("--file", help="File of keys; `add` makes it.", show_default=False)]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is; stands in the log.")],
    file: File,
    tenants: Annotated[
        str | None,
        typer.Option(help="Tenants that it may ask, separated by commas; `base` is the plain model. Without it, all."),
    ] = None,
    limit: Annotated[str | None, typer.Option(help="Requests, as in 60/min, 5/s or 10000/day.")] = None,
    token_limit: Annotated[
        str | None, typer.Option(help="Tokens of prompts and answers together, as in 100000/h.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may change tenants.")] = False,
) -> None:
    """Make a key, and print it."""
    from ..core import CommonweightError, safe
    from ..serve.http import keys

    names = None if tenants is None else [t for t in (t.strip() for t in tenants.split(",")) if t]
    if names == []:
        raise CommonweightError("--tenants names none; leave it out for all")
    secret, key = keys.make(name, names and [safe(n) for n in names], limit, token_limit, admin)
    keys.add(file, key)
    typer.echo(secret)


@app.command("list")
def show(file: File) -> None:
    """List the keys, without themselves."""
    from ..serve.http import keys

    for k in keys.read(file):
        told = ["all tenants" if k.tenants is None else ", ".join(sorted(k.tenants))]
        told += [f"{x.text} {what}" for x, what in ((k.requests, "requests"), (k.tokens, "tokens")) if x]
        typer.echo(f"{k.name}: {'; '.join([*told, *(['admin'] if k.admin else [])])}")


@app.command()
def remove(name: Annotated[str, typer.Argument(help="Whose key.")], file: File) -> None:
    """Withdraw a key."""
    from ..serve.http import keys

    keys.remove(file, name)
    typer.echo(f"{name}: withdrawn")
