"""commonweight extract: a LoRA adapter out of a full model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core import counted

EXAMPLES = """[bold]Examples[/bold]

Write a PEFT LoRA folder of rank 32:

  commonweight extract ./legal --base ./base --rank 32 --out legal-lora

The lowest rank that keeps 95 % of each change, at most 64; attention at most 8:

  commonweight extract ./legal --base ./base --energy 0.95 --rank 64 --rank-at '*attn*=8' --out legal-lora
"""


def command(
    model: Annotated[Path, typer.Argument(help="Folder or safetensors file of the full model.")],
    base: Annotated[Path, typer.Option(help="The base that it was trained from.")],
    out: Annotated[Path, typer.Option(help="Folder of the adapter.")],
    rank: Annotated[
        int | None, typer.Option(help="Rank of every matrix (16); with --energy, the highest rank.")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Share of each change's squared norm to keep; gives each matrix its own rank.")
    ] = None,
    rank_at: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB=RANK", help="Another rank for the modules that match; may be repeated."),
    ] = None,
    sites: Annotated[str, typer.Option(help="Which modules: globs over their names, joined by |.")] = "*",
    seed: Annotated[int, typer.Option(help="Seed of the random projections.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing adapter folder.")] = False,
) -> None:
    """Extract a LoRA adapter from a fine-tuned model: its difference from the base."""
    from ..core import CommonweightError
    from ..formats import atomic

    ranks = {}
    for text in rank_at or []:
        glob, equals, number = text.rpartition("=")
        if not equals or not number.isdigit():
            raise CommonweightError(f"--rank-at {text}: wanted a glob and a rank, as in '*attn*=8'")
        ranks[glob] = int(number)
    for path in (model, base):
        if not path.exists():
            raise CommonweightError(f"{path}: no such file or folder")
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise atomic.taken(out)
    atomic.folder_for(out, ["adapter_config.json"], "adapter folder", overwrite=overwrite)
    from ..merge import extract

    found = extract(
        model, base, out, rank=rank, energy=energy, ranks=ranks, sites=sites, seed=seed, overwrite=overwrite
    )
    for notice in found.notices:
        typer.echo(f"notice: {notice}", err=True)
    worst = max(found.errors, key=found.errors.__getitem__)
    low, high = min(found.ranks.values()), max(found.ranks.values())
    span = low if low == high else f"{low} to {high}"
    typer.echo(
        f"{found.folder}: {counted(len(found.ranks), 'module')}, rank {span}; relative error "
        f"{found.total:.3g} in total, at most {found.errors[worst]:.3g} ({worst}); all of them in report.json"
    )
    for name, share in sorted(found.left_out.items(), key=lambda x: -x[1])[:5]:
        typer.echo(
            f"left out: {name}" + (f", {share:.2g} of the change" if share == share else ", which the base has not")
        )
    if len(found.left_out) > 5:
        typer.echo(f"left out: {len(found.left_out) - 5} more")
