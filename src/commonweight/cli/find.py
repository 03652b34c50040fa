"""commonweight store describe and find: tenants by what their task's texts say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..core import CommonweightError, counted
from .progress import quiet

Store = Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)]


def describe(
    store: Store,
    name: Annotated[str, typer.Argument(help="A tenant of the store.")],
    rows: Annotated[Path, typer.Argument(help="Rows of its task: jsonl, json, csv, tsv, parquet or arrow.")],
    encoder: Annotated[
        str | None,
        typer.Option(help="A sentence encoder: a folder or a name on the hub. None: the one of the store."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of texts (text).")] = None,
    most: Annotated[int, typer.Option(help="So many rows at most.", min=1)] = 256,
) -> None:
    """Describe a tenant by rows of its task, so that `find` finds it."""
    from ..adapt import read
    from ..commons import Commons
    from ..commons import descriptions as made

    column = text_column or "text"
    found = read(rows)[:most]
    for i, row in enumerate(found, 1):
        if not isinstance(row.get(column), str):
            raise CommonweightError(f"{rows}: row {i} has no text in {column!r}; name the column: --text-column")
    at = Commons(store, make=False)
    at.manifest(name)  # before an encoder is opened
    before = None if encoder else made.read(at)
    if not encoder and before is None:
        raise CommonweightError(
            f"{store}: no tenant is described yet, so that the encoder is not known; name one, --encoder "
            "sentence-transformers/all-MiniLM-L6-v2 say"
        )
    encoder = encoder or before.encoder  # type: ignore[union-attr]
    texts = {name: [str(r[column]) for r in found]}
    quiet()
    described = made.describe(at, texts, made.encoder(encoder), encoder)
    typer.echo(
        f"{name}: described by {counted(len(found), 'row')}; {counted(len(described.names), 'tenant')} can be found"
    )


def find(
    store: Store,
    text: Annotated[str, typer.Argument(help="A request, as its task's rows are.")],
    number: Annotated[int, typer.Option("--number", "-n", help="So many tenants at most.", min=1)] = 5,
    encoder: Annotated[str | None, typer.Option(help="Where the encoder lies now, if it was moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the tenants whose tasks are most like a text; `describe` says what they are."""
    from ..commons import Commons
    from ..commons import descriptions as made

    if not text.strip():
        raise CommonweightError("the text is empty; give a request, as the rows of a tenant's task are")
    at = Commons(store, make=False)
    described = made.read(at)
    if described is None:
        raise CommonweightError(
            f"{store}: no tenant is described; first, for each, `commonweight store describe {store} TENANT ROWS "
            "--encoder ENCODER`, with rows of its task"
        )
    quiet()
    (vector,) = made.encoder(encoder or described.encoder)([text])
    found = made.find(described, vector, number, at.newest())
    if as_json:
        typer.echo(json.dumps([f._asdict() for f in found], indent=1))
    else:
        typer.echo("\n".join(f"{f.score:7.4f}  {f.name}" for f in found))
