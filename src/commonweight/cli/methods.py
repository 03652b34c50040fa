"""commonweight methods: which there are, and which options each has."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXAMPLES = """[bold]Examples[/bold]

All methods, with their papers:

  commonweight methods

The options of one, for `commonweight adapt -o name=value`:

  commonweight methods mos
"""


def command(
    name: Annotated[str | None, typer.Argument(help="A method: its options, defaults and what they do.")] = None,
    lifelong: Annotated[
        bool, typer.Option("--lifelong", help="Methods for tasks that come one after another: adapt --stream.")
    ] = False,
    over: Annotated[bool, typer.Option("--over", help="Methods that weigh other tenants: adapt --over.")] = False,
) -> None:
    """List the methods, or the options of one."""
    from rich.console import Console

    from . import early

    if lifelong:
        early.lifelong(name)
        Console(highlight=False).print(streams() if name is None else stream(name))
        return
    name = early.method(name, over=True)
    console = Console(highlight=False)
    console.print(everything(over) if name is None else one(name))


def everything(over: bool = False) -> Any:
    from rich.table import Table

    from ..methods import METHODS, OVER

    table = Table(title="Methods", title_justify="left", show_lines=True)
    for head in ("name", "paper", "trainable parameters", "reads"):
        table.add_column(head, overflow="fold", no_wrap=head == "name")
    for m in (OVER if over else METHODS).available().values():
        reads = "what its tenants read" if over else ", ".join(m.kinds) or "the head"
        table.add_row(m.name, m.paper, m.formula, reads)
    return table


def streams() -> Any:
    from rich.table import Table

    from ..lifelong import available

    table = Table(title="Lifelong methods", title_justify="left", show_lines=True)
    for head in ("name", "paper", "carries over", "a further task adds", "rows kept"):
        table.add_column(head, overflow="fold", no_wrap=head == "name")
    for m in available().values():
        table.add_row(m.name, m.paper, m.carries, m.grows, m.rows)
    return table


def stream(name: str) -> Any:
    from rich.console import Group
    from rich.text import Text

    from ..lifelong import get

    m = get(name)
    about = [
        f"{m.name}: {m.paper}",
        f"carries over: {m.carries}",
        f"a further task adds: {m.grows}",
        f"rows kept: {m.rows}",
    ]
    return Group(*(Text(line) for line in about), options_table(m.config))


def one(name: str) -> Any:
    from rich.console import Group
    from rich.text import Text

    from ..core.peers import said
    from ..methods import OVER, either

    m = either(name)
    sites = f"reads sites of kind: {', '.join(m.kinds) or 'head'}" + (f" ({', '.join(m.roles)})" if m.roles else "")
    told = ", ".join(f"{k}={str(v).lower()}" for k, v in said(name).items())
    facts = [
        *([f"{name} is {m.name} with {told}"] if told else []),
        f"{m.name}: {m.paper}",
        f"trainable parameters: {m.formula}",
        "weighs other tenants, and reads what they read: adapt --over" if name in OVER.all else sites,
        f"learning rate: {m.lr:g}",
        f"a fresh tenant leaves the base {'unchanged' if m.fresh == 'exact' else 'changed: ' + m.fresh}",
    ]
    return Group(*(Text(f) for f in facts), options_table(m.config))


def options_table(config: type) -> Any:
    """The options of a method's config."""
    from rich.table import Table
    from rich.text import Text

    from ..core import table as options_of

    rows = options_of(config)
    table = Table(title="Options", title_justify="left")
    for head in ("option", "type", "default", "what it does"):
        table.add_column(head, overflow="fold", no_wrap=head == "option")
    for option, kind, default, text in rows:
        shown = str(default).lower() if default is None or isinstance(default, bool) else str(default)
        table.add_row(Text(option), Text(kind), Text(shown), Text(text))
    return table if rows else Text("no options")
