"""commonweight export: a tenant as an adapter of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import bases

EXAMPLES = """[bold]Examples[/bold]

For llama.cpp, `llama-cli -m base.gguf --lora legal.gguf`:

  commonweight export legal.safetensors --format gguf --base ./base --out legal.gguf

For mlx-lm, `mlx_lm.generate --model ./base --adapter-path legal-mlx`:

  commonweight export legal.safetensors --format mlx --base ./base --out legal-mlx

For a pipeline of diffusers, `pipe.load_lora_weights("style.safetensors")`; kohya is for ComfyUI and its like:

  commonweight export style-own.safetensors --format diffusers --base ./sdxl/unet --out style.safetensors

For PEFT, at most rank 16, or an error:

  commonweight export legal.safetensors --format peft --base ./base --rank 16 --tolerance 0.05 --out legal-peft
"""
FORMATS = "peft", "gguf", "mlx", "diffusers", "kohya"


def command(
    tenant: Annotated[Path, typer.Argument(help="A tenant's file, or an adapter of any tool that is read here.")],
    format: Annotated[str, typer.Option(help="peft or mlx (folders); gguf, diffusers or kohya (a file).")],
    base: Annotated[str, typer.Option(help="The tenant's base: a folder, or a name on the hub.")],
    out: Annotated[Path, typer.Option(help="The folder or file to write.")],
    rank: Annotated[
        int | None, typer.Option(help="The highest rank, for what is no product of two factors.", min=1)
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative error allowed at each weight, such as 0.01.", min=0)
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="What diffusers or kohya call the model in its pipeline, such as text_encoder_2 or te2."),
    ] = None,
    task_name: Annotated[
        str | None, typer.Option(help="Of a tenant that goes by tasks (`poly tasks=...`), which: its name or number.")
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"How the base is opened: {bases.TASKS}.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file or adapter folder.")] = False,
) -> None:
    """Write a tenant as an adapter of PEFT, llama.cpp (GGUF), mlx-lm, diffusers or kohya's scripts."""
    from ..core import CommonweightError, unknown
    from ..formats import atomic
    from . import early

    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if part is not None and format not in ("diffusers", "kohya"):
        raise CommonweightError(f"--part is of diffusers and kohya; {format} has one model alone. Leave it out")
    early.files([tenant])
    early.model(base)
    early.task(task)
    atomic.free(out, "--out", overwrite=overwrite)

    host: Any = bases.open_base(base, task, pool=_pool(tenant))
    there = host.load_adapter(tenant, "tenant")
    if there.tasks and task_name is None:
        known = ", ".join(there.tasks)
        raise CommonweightError(f"{tenant}: it goes by tasks; say which is to be written with --task-name, of {known}")
    which = int(task_name) if task_name and task_name.isdecimal() and task_name not in there.tasks else task_name
    asked = {k: v for k, v in (("rank", rank), ("tolerance", tolerance), ("part", part)) if v is not None}
    host.export(there.name, out, format, task=which, overwrite=overwrite, **asked)
    files = [p for p in out.iterdir() if p.is_file()] if out.is_dir() else [out]
    typer.echo(f"{out}: {format}, {sum(p.stat().st_size for p in files):,} bytes")


def _pool(tenant: Path) -> str | None:
    """Of a tenant's own file with a classification head: what its base pools, "" for its default; None without one."""
    import safetensors

    from ..formats import native
    from ..formats.recognise import recognise

    kind, at = recognise(tenant)
    if kind != "commonweight" or not native.read_header(at).get("labels"):
        return None
    with safetensors.safe_open(at, "pt") as f:
        places = {key.rpartition(".")[0] for key in f.keys()}
    return next((pool for pool in ("pooler", "cls") if f"{pool}_head" in places), "")
