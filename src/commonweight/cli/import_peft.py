"""commonweight store import-peft: finished PEFT adapters as tenants of one common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    store: Annotated[Path, typer.Argument(help="Folder of the store; made if there is none.", show_default=False)],
    folders: Annotated[
        list[Path], typer.Argument(help="PEFT LoRA adapters, or folders of them; a tenant is called as its folder.")
    ],
    model: Annotated[str, typer.Option(help="The adapters' base: a folder, or a name on the hub.")],
    task: Annotated[str, typer.Option(help="What the tenants will serve: lm, or classify and embed.")] = "lm",
    rank: Annotated[
        int | None, typer.Option(help="Directions of the common bases at every site, in place of --keep.", min=1)
    ] = None,
    keep: Annotated[
        float, typer.Option(help="Mean share of an adapter's squared norm to keep at least.", min=0, max=1)
    ] = 0.95,
    common: Annotated[
        str, typer.Option(help="The bases' name; tenants of the store that have them already are taken along.")
    ] = "adapters",
    codec: Annotated[
        str | None, typer.Option(help="Store the numbers in fewer bytes: bfloat16, int8, int4 or compeft.")
    ] = None,
    eval: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows on which each adapter is measured, before and after.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the directions that PEFT LoRA adapters have in common, and store each as a few numbers for them."""
    from .. import adapt
    from ..commons import Commons, import_peft
    from ..commons.adapters import adapters

    rows = None if eval is None else adapt.read(eval)
    found = adapters(folders)
    host = adapt.open_host(model, task)
    c = Commons(store)
    scores: dict[str, list[dict[str, float]]] = {}

    def measure(name: str) -> None:
        if rows is not None:
            scores.setdefault(name, []).append(adapt.evaluate(host, name, rows, task))
        host.remove(name)

    if rows is not None:
        for name, folder in found.items():
            host.import_peft(name, folder)
            measure(name)
    report = import_peft(c, host, folders, common=common, keep=keep, k=rank, codec=codec)
    for name in scores:
        host.load_from(c, name)
        measure(name)
    if as_json:
        import json

        typer.echo(json.dumps(_plain(report, scores), indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(_lines(report, scores)))


def _lines(report: Any, scores: dict[str, list[dict[str, float]]]) -> list[str]:
    metrics = [m for m in next(iter(scores.values()))[0] if m != "n"] if scores else []
    table = [("adapter", "rank", "bytes in PEFT", "bytes of its own", "saved", "error", *metrics)]
    for t in report.tenants:
        before = ("-", "-") if t.before is None else (f"{t.before:,}", f"{t.before - t.own:,}")
        was = scores.get(t.name)
        told = ["-" if was is None else f"{was[0][m]:.4g} -> {was[1][m]:.4g}" for m in metrics]
        table.append((t.name, f"{t.rank}", before[0], f"{t.own:,}", before[1], f"{t.error:.4f}", *told))
    table.append(("common bases", "", "", f"{report.common:,}", "", "", *("" for _ in metrics)))
    saved = f"{report.before - report.after:,}"
    table.append(("total", "", f"{report.before:,}", f"{report.after:,}", saved, "", *("" for _ in metrics)))
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [_line(row, widths) for row in table]
    if report.before and report.after >= report.before:
        lines.append(
            "Nothing is saved: these adapters have too few directions in common, or are too few. Fewer --rank, a lower "
            "--keep or a --codec make them smaller; `store import` keeps each as it is."
        )
    elif report.before:
        lines.append(f"{report.before / report.after:.2f} times smaller")
    return lines


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """The name to the left, numbers to the right."""
    return "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths))).rstrip()


def _plain(report: Any, scores: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    tenants = [
        {**t._asdict(), **({"metrics_before": s[0], "metrics_after": s[1]} if (s := scores.get(t.name)) else {})}
        for t in report.tenants
    ]
    return {"tenants": tenants, "common": report.common, "before": report.before, "after": report.after}
