"""commonweight plan: what so many tenants of a method would cost on a model, before anything is trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXAMPLES = """[bold]Examples[/bold]

Ten thousand tenants of every method on Llama-3.1-8B's shapes, no weights needed:

  commonweight plan llama-3.1-8b --tenants 10000

Some methods with options of their own, stored in 8 bits:

  commonweight plan my-model -m lotr:rank=16 -m lora:rank=8 --tenants 500 --codec int8
"""

REFERENCE = ("lora", {"rank": 16})


def command(
    model: Annotated[
        str, typer.Argument(help="A model's folder (only config.json is read), or llama-3.1-8b or minilm-l6.")
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:OPTION=VALUE,...]",
            help="A method and its options; may be repeated. Without it, every method with its defaults.",
        ),
    ] = None,
    tenants: Annotated[
        int, typer.Option(min=1, help="Number of tenants; they share one common where the method has one.")
    ] = 1,
    codec: Annotated[
        str | None,
        typer.Option(help="How trained pools are stored: bfloat16, int8 or int4; onebit for bi-lora (float32)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what tenants would cost in numbers and bytes, compared with LoRA of rank 16."""
    from . import early

    for spec in method or ():
        name, _, options = spec.partition(":")
        early.method(name, [o for o in options.split(",") if o])
    early.codec(codec)

    rows = costs(model, method or [], tenants, codec)
    if as_json:
        import json

        typer.echo(json.dumps({"model": model, "tenants": tenants, "codec": codec, "rows": rows}, indent=1))
        return
    titles = ("method", "trained", "trained, late", "bytes once", "bytes each", f"bytes of {tenants:,}", "of LoRA r16")
    shown = [titles, *(_shown(r) for r in rows)]
    widths = [max(map(len, column)) for column in zip(*shown)]
    for row in shown:
        typer.echo(
            "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        )
    typer.echo("LoRA r16: all linear sites, bfloat16. Heads, and a manifest of 1 to 3 KB a tenant, are not counted.")


def costs(model: str, specs: list[str], tenants: int, codec: str | None) -> list[dict[str, Any]]:
    """One row per method: those asked for, or all, the smallest total first; then the reference."""
    from ..builder.load import config_of, holds
    from ..commons.cost import cost, read_spec
    from ..core import parse
    from ..formats.codecs import OneBit
    from ..formats.codecs import get as codec_of
    from ..host.shapes import sites_of
    from ..methods import available, get

    chosen = codec_of(codec) if codec else None
    takes = {n: m for n, m in available().items() if m.levels or not isinstance(chosen, OneBit)}
    wanted = [(name, parse(get(name).config, options)) for name, options in map(read_spec, specs)]
    sites = sites_of(model, config_of(model) if holds(model) else None)
    found = [cost(name, sites, options, chosen) for name, options in wanted or _possible(sites, takes)]
    if not wanted:
        found.sort(key=lambda c: c.total(tenants))
    reference = cost(*_with_sites(sites), codec_of("bfloat16"))._replace(label="lora rank=16, bfloat16")
    whole = reference.total(tenants)
    return [{**c._asdict(), "total": c.total(tenants), "ratio": c.total(tenants) / whole} for c in [*found, reference]]


def _with_sites(sites: Any) -> tuple[str, Any, dict[str, Any]]:
    return REFERENCE[0], sites, dict(REFERENCE[1])


def _possible(sites: Any, methods: Any) -> list[tuple[str, dict[str, Any]]]:
    """The methods whose default options fit these widths and kinds, but those that train no site."""
    from ..commons.cost import cost
    from ..core import CommonweightError

    out = []
    for name, method in methods.items():
        try:
            if method.kinds and cost(name, sites).private:
                out.append((name, {}))
        except CommonweightError:
            continue
    return out


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (f"{row[k]:,}" for k in ("trainable", "own", "common", "private", "total"))
    return (row["label"], *numbers, f"{row['ratio']:.3%}")
