"""commonweight store: tenants in one folder that share their pools. Loads torch only to read or write tenant files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core import counted
from . import find, import_any, import_peft
from .published import published

EXAMPLES = """[bold]Examples[/bold]

A store, and a tenant in it; other content under the same name makes a new version:

  commonweight store init commons
  commonweight store publish commons legal.safetensors --metric accuracy=0.95

What every tenant costs, and what one more would:

  commonweight store list commons

Finished PEFT adapters, as a few numbers each for bases that they have in common:

  commonweight store import-peft commons adapters/ --model path/to/base

Adapters of other tools, each as it is (PEFT, mlx-lm, llama.cpp, torchtune, kohya's scripts, LyCORIS, diffusers):

  commonweight store import commons legal-lora/ medical.gguf --model path/to/base

Tenants by a text, once rows of their tasks describe them:

  commonweight store describe commons legal legal.jsonl --encoder sentence-transformers/all-MiniLM-L6-v2
  commonweight store find commons "What does clause 4 say about notice?"

A tenant as one file again, for Host.load:

  commonweight store export commons legal legal.safetensors
"""

app = typer.Typer(no_args_is_help=True, help="Keep many tenants in one folder; pools that they share are stored once.")
app.command("import")(import_any.command)
app.command("import-peft")(import_peft.command)
app.command("describe")(find.describe)
app.command("find")(find.find)

Store = Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)]
Name = Annotated[str, typer.Argument(help="A tenant (its newest version), or one version, as in legal@2.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _open(store: Path, make: bool = False) -> Any:
    from ..commons import Commons

    return Commons(store, make=make)


@app.command()
def init(store: Store) -> None:
    """Make an empty store."""
    c = _open(store, make=True)
    typer.echo(f"{c.folder}: a store of {counted(len(c), 'tenant')}")


@app.command()
def publish(
    store: Store,
    file: Annotated[Path, typer.Argument(help="A tenant's file, as `commonweight adapt` and Host.save write it.")],
    name: Annotated[str | None, typer.Option(help="The tenant's name; without it, the name of the file.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="A metric, in place of those in the file; may be repeated."),
    ] = None,
    parent: Annotated[
        list[str] | None, typer.Option(help="A tenant of the store that it was made from; may be repeated.")
    ] = None,
) -> None:
    """Publish a tenant's file; other content under an existing name becomes a new version."""
    metrics = dict(map(_metric, metric)) if metric else None
    c = _open(store)
    before = c.newest()
    published(c.publish_file(file, name, metrics=metrics, parents=parent or ()), before)


@app.command()
def export(
    store: Store,
    name: Name,
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a tenant to one file, which Host.load reads."""
    from ..formats import atomic

    atomic.free(file, "FILE", overwrite=overwrite)
    at = _open(store).export(name, file, overwrite=overwrite)
    typer.echo(f"{at}: {at.stat().st_size:,} bytes")


@app.command("list")
def list_(store: Store, as_json: Json = False) -> None:
    """List the tenants, with the bytes of each and its marginal bytes: what removing it would free."""
    records = _open(store).list()
    if as_json:
        _json([vars(r) for r in records])
        return
    rows = [("name", "version", "method", "pools", "bytes", "marginal bytes", "metrics")]
    for r in records:
        numbers = f"{len(r.pools)}", f"{r.nbytes:,}", f"{r.marginal_bytes:,}"
        rows.append((r.name, f"{r.version}", r.method, *numbers, _metrics(r.metrics)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    typer.echo("\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths)).rstrip() for row in rows))


@app.command()
def show(store: Store, name: Name, as_json: Json = False) -> None:
    """Show one tenant: method, cost, and the pools that it reads."""
    c = _open(store)
    r, m = c.show(name), c.manifest(name)
    if as_json:
        _json({**vars(r), "tenant": m.tenant, "pools": m.pools})
        return
    lines = [
        f"{m.label}: {r.method}, published {r.created}",
        f"versions: {', '.join(map(str, r.versions))}",
        f"base: {r.base}",
        *([f"common: {r.common}"] if r.common is not None else []),
        f"config: {', '.join(f'{k}={v}' for k, v in m.tenant['config'].items()) or 'as by default'}",
        f"metrics: {_metrics(r.metrics) or 'none'}",
        f"parents: {', '.join(r.parents) or 'none'}",
        f"bytes: {r.nbytes:,} ({r.marginal_bytes:,} of them and of its other versions would leave with it)"
        if len(r.versions) > 1
        else f"bytes: {r.nbytes:,} ({r.marginal_bytes:,} of them would leave with it)",
        "pools:",
        *(f"  {p.hash[:16]}  {p.dtype:4} {'x'.join(map(str, p.shape)) or '1'}  {k}" for k, p in m.pools.items()),
    ]
    typer.echo("\n".join(lines))


@app.command()
def verify(store: Store) -> None:
    """Check every bit; print each damaged file with its tenants, and exit with code 1 if there is any."""
    c = _open(store)
    problems = c.verify()
    for p in problems:
        typer.echo(str(p))
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{c.folder}: sound, {counted(len(c), 'tenant')}, {c.nbytes:,} bytes")


@app.command()
def remove(store: Store, name: Name) -> None:
    """Remove a tenant with all its versions, or one version; `gc` then frees what no other tenant reads."""
    _open(store).remove(name)
    typer.echo(f"removed {name}")


@app.command()
def gc(
    store: Store,
    keep: Annotated[
        int | None, typer.Option(help="Keep this many of the newest versions of each tenant (all).")
    ] = None,
) -> None:
    """Delete pools that no tenant reads, and files that killed writers left."""
    freed = _open(store).gc(keep)
    typer.echo(
        f"freed {freed.nbytes:,} bytes: {counted(freed.pools, 'pool')}, {counted(freed.versions, 'version')}, "
        f"{freed.torn} torn files"
    )


@app.command()
def diff(store: Store, a: Name, b: Name, as_json: Json = False) -> None:
    """Compare two tenants or two versions: which pools they have in common, and where they differ."""
    d = _open(store).diff(a, b)
    if as_json:
        _json(d._asdict())
        return
    typer.echo(f"{d.a} and {d.b}: {counted(len(d.same), 'tensor')} the same, {d.common_bytes:,} bytes in common")
    for what, names in (("changed", d.changed), (f"only {d.a}", d.only_a), (f"only {d.b}", d.only_b)):
        for name in names:
            typer.echo(f"  {what}: {name}")
    for field, (x, y) in d.about.items():
        typer.echo(f"  {field}: {x} -> {y}")


def _metric(text: str) -> tuple[str, float]:
    from ..core import CommonweightError

    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise CommonweightError(f"--metric {text}: wanted a name and a number, as in accuracy=0.95") from None


def _metrics(metrics: dict[str, Any]) -> str:
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in metrics.items())


def _json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
