"""What `commonweight adapt` does: looks at all that was said, trains, tells what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from ..core import counted, safe
from . import early
from .said import Said

if TYPE_CHECKING:
    from .progress import Bar


def run(said: Said, options: dict[str, Any]) -> None:
    """options: of the method, from a file."""
    from ..adapt.place import out_path
    from ..commons import Commons
    from ..core import CommonweightError

    if said.method == "":
        raise CommonweightError(
            "--method is empty; name one of `commonweight methods`, or leave it out for the usual one"
        )
    if said.stream is not None:
        from .streams import run as run_stream

        return run_stream(said, training)
    if said.tenants is not None:
        alone = {"DATA": said.data, "eval": said.eval_file}
        alone |= said.given("tenant", "common", "over", "method", "option")
        if twice := [k for k, v in {**alone, **said.how, **said.source, **said.recipe}.items() if v is not None]:
            flag = twice[0] if twice[0] == "DATA" else f"--{twice[0].replace('_', '-')}"
            raise CommonweightError(f"{flag} cannot be used with --tenants; set it in {said.tenants}")
    if said.model is None:
        raise CommonweightError("no MODEL: name the base model's folder, or a YAML file with model: in it")
    if said.tenants is None and said.data is None:
        raise CommonweightError("no DATA: name a file to train on, or a file of several tenants with --tenants")
    early.model(said.model, said.task or "classify")
    if said.store is not None:
        Commons(said.store, make="late" if said.common is None else False)
    if said.tenants is not None:
        if said.push_to_hub is not None:
            raise CommonweightError("--push-to-hub uploads one tenant; leave it out beside --tenants")
        early.log(said.log_to)
        early.tenants(said.tenants)
        return _together(said)
    usual = "mos" if said.common is None else None  # else that of the common
    method = early.method(said.method or usual, said.option, options, said.over is not None)
    said = replace(said, method=method, task=early.task(said.task))
    if (said.out is None) == (said.store is None) and not (said.dry_run and said.out is None):
        raise CommonweightError("no output: give --out FILE.safetensors or --store FOLDER")
    if said.common is not None and said.store is None:
        raise CommonweightError(f"--common {said.common}: which store has it? name it with --store")
    if said.store is not None and said.tenant is None:
        raise CommonweightError("--store: the tenant needs a name, --tenant NAME")
    early.over(said.over, said.method, name_of(said), said.given("common", "sites", "modules_to_save", "token_rows"))
    early.log(said.log_to)
    early.hub(said.push_to_hub, said.out)
    early.dtype(said.dtype)
    early.codec(said.codec)
    early.device(said.device)
    early.beside(said.modules_to_save, said.token_rows)
    early.optimizer(said.optimizer)
    early.preference(said.task or "classify", said.reward, said.resume)
    early.side(said.truncation_side)
    early.quantize(said.quantize)
    early.loading(said.shard, said.device_map, said.liger)
    early.recipe(said.recipe)
    if said.out is not None:
        out_path(said.out, said.overwrite or said.resume)
    name = name_of(said)
    early.rows(said.data, said.dev, said.eval_file)
    if said.store is not None:
        return _publish(said, name, options)
    _one(said, name, options)


def name_of(said: Said) -> str:
    return safe(said.tenant or (said.out.stem if said.out is not None else "tenant"))


def _one(said: Said, name: str, options: dict[str, Any]) -> None:
    from ..adapt import Job, Source, processes
    from ..adapt.files import look, run
    from ..adapt.standing import bringing, listed
    from ..core import parse
    from ..methods import either

    assert said.model is not None and said.data is not None
    method = said.method or "mos"
    options = {**options, **parse(either(method).config, list(said.option))}
    over = listed(said.over or ())
    if said.out is None or said.dry_run:
        files = {name: Source(data=said.data, eval=said.eval_file, **said.source)}
        job = Job(tenants=files, method=method, options=options, over=over, recipe=said.recipe, **said.how)
        with training(said, name) as (bar, _):
            look(said.model, job, bring=bringing(over, None), dry_run=True, say=bar.say)
        return
    with training(said, name) as (bar, progress):
        files = run(
            said.model, said.data, said.out, method=method, options=options, tenant=name, eval_file=said.eval_file,
            resume=said.resume, overwrite=said.overwrite, say=bar.say, progress=progress, over=over, **said.how,
            **said.source, **said.recipe,
        )  # fmt: skip
    if not processes.first():
        return processes.leave()
    processes.leave()
    if files.evaluated:
        typer.echo(line(said.task or "classify", files.evaluated))
    elif files.result.metrics:
        typer.echo(f"dev: {line(said.task or 'classify', files.result.metrics)}")
    t = files.result.tenant
    bar.say(bar.pace.told)
    typer.echo(
        f"{files.tenant}: {t.method.name}, {counted(t.count(), 'parameter')}, {files.tenant.stat().st_size:,} bytes"
    )
    if said.push_to_hub is not None:
        from ..adapt.hub import push

        typer.echo(push(said.push_to_hub, [files.tenant, files.report], str(said.model)))


def _publish(said: Said, name: str, options: dict[str, Any]) -> None:
    from ..adapt import Job, Source, processes, run_late
    from ..adapt.standing import listed
    from ..adapt.together import method_of
    from ..core import parse
    from ..methods import either

    assert said.model is not None and said.data is not None and said.store is not None
    method = said.method or (method_of(said.store, said.common) if said.common is not None else "mos")
    options = {**options, **parse(either(method).config, list(said.option))}
    source = Source(data=said.data, eval=said.eval_file, **said.source)
    job = Job(
        tenants={name: source}, method=method, options=options, common=said.common, over=listed(said.over or ()),
        recipe=said.recipe, **said.how,
    )  # fmt: skip
    with training(said, name) as (bar, progress):
        made = run_late(
            said.model, job, said.store, resume=said.resume, dry_run=said.dry_run, say=bar.say, progress=progress
        )
    processes.leave()
    if said.dry_run or not processes.first():
        return
    found = made[name]
    if metrics := found.evaluated or found.result.metrics:
        typer.echo(("" if found.evaluated else "dev: ") + line(job.task, metrics))
    t, w = found.result.tenant, found.written
    typer.echo(
        f"{w.where}: {t.method.name}, {counted(t.count(), 'parameter')}, {w.nbytes:,} bytes, {w.marginal:,} of "
        "them marginal"
    )


def _together(said: Said) -> None:
    from ..adapt import processes, read_tenants, run_together

    assert said.model is not None and said.tenants is not None
    job = read_tenants(said.tenants)
    with training(said, said.tenants.stem) as (bar, progress):
        found = run_together(
            said.model, job, out=said.out, store=said.store, resume=said.resume, overwrite=said.overwrite,
            dry_run=said.dry_run, say=bar.say, progress=progress,
        )  # fmt: skip
    processes.leave()
    if said.dry_run or not processes.first():
        return
    rows = [("tenant", "metrics", "own bytes", "common bytes", "written to")]
    for name, o in found.items():
        metrics = o.evaluated or o.result.metrics
        told = (("" if o.evaluated else "dev: ") + line(job.task, metrics)) if metrics else ""
        rows.append((name, told, f"{o.written.own:,}", f"{o.written.common:,}", o.written.where))
    widths = [max(map(len, column)) for column in zip(*rows)]
    typer.echo("\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths)).rstrip() for row in rows))


@contextmanager
def training(said: Said, name: str) -> Iterator[tuple[Bar, Any]]:
    """A progress bar, and the callback for it and the log; and what to do after Ctrl-C."""
    from ..adapt.logs import logged
    from ..adapt.processes import first
    from .progress import Bar

    writes = first() and not said.dry_run
    try:
        with Bar(first()) as bar, logged(said.log_to if writes else None, name, bar) as progress:
            yield bar, progress
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None


def line(task: str, metrics: dict[str, float]) -> str:
    """One line per measurement; its form does not change, scripts may read it."""
    tail = f" (n={int(metrics['n'])})" if "n" in metrics else ""
    if task == "lm":
        return f"loss {metrics['loss']:.4f} bits per byte {metrics['bits_per_byte']:.4f}{tail}"
    if task == "grpo":
        return f"reward {metrics['reward']:.4f}{tail}"
    if task in ("dpo", "orpo", "kto"):
        return f"accuracy {metrics['accuracy']:.4f} margin {metrics['margin']:.4f}{tail}"
    if task == "embed":
        return f"loss {metrics['loss']:.4f} retrieval accuracy {metrics['accuracy']:.4f}{tail}"
    return f"accuracy {metrics['accuracy']:.4f}{tail}"
