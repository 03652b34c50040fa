"""commonweight store import: tenants' files, and adapters of other tools, into a store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core import counted
from . import bases
from .published import published

MODEL = "; it needs its base: --model"


def command(
    store: Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Tenants' files, or adapters of other tools (files or folders), each named after its file."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="The base of other tools' adapters: a folder, or a name on the hub.")
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"How the base is opened: {bases.TASKS}.")] = None,
    format: Annotated[str | None, typer.Option(help="The format, in place of what the content says.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Relative error allowed at a weight whose change has no factors; makes it smaller.", min=0),
    ] = None,
    poly_task: Annotated[int | None, typer.Option(help="Which task of a Poly adapter.", min=0)] = None,
    part: Annotated[str | None, typer.Option(help="Which part of a pipeline's file, such as te1.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Alpha of a torchtune checkpoint without its config.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Of a CorDA or LoRA-GA of PEFT: the folder of the adapter before training.")
    ] = None,
) -> None:
    """Publish tenants and other tools' adapters at once: all of them, or none if one is wrong."""
    from ..core import CommonweightError, unknown
    from ..formats.recognise import FORMATS, recognise
    from . import early

    early.files(files)
    early.task(task)
    if format is not None and format not in FORMATS:
        raise unknown("format", format, FORMATS)
    kinds = {f: format or recognise(f)[0] for f in files}
    foreign = [f for f in files if kinds[f] != "commonweight"]
    if model is None and foreign:
        raise CommonweightError(f"{foreign[0]}: {FORMATS[kinds[foreign[0]]]}{MODEL}")
    if model is not None:
        early.model(model)
    from ..commons import Commons

    c = Commons(store, make="late" if foreign else False)
    before = c.newest()
    if not foreign:
        made = c.publish_files(files)
    else:
        assert model is not None
        host: Any = bases.open_base(model, task)
        options = {
            "format": format,
            "tolerance": tolerance,
            "task": poly_task,
            "part": part,
            "alpha": alpha,
            "start": start,
        }
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            names = [_loaded(host, f, kinds[f] == "commonweight", options) for f in files]
        for notice in told:
            typer.echo(f"notice: {notice.message}", err=True)
        made = [*c.publish_all(host, names).values()]
    for m in made:
        published(m, before)


def _loaded(host: Any, path: Path, own: bool, options: dict[str, Any]) -> str:
    """The name of the tenant that was made of it."""
    tenant = host.load_adapter(path) if own else host.load_adapter(path, **options)
    pools = sum(p.numel() for p in tenant.pools.values())
    typer.echo(
        f"{path}: {tenant.method.name} at {len({u.site for u in tenant.plan.uses})} sites, {counted(pools, 'number')}",
        err=True,
    )
    return tenant.name
