"""commonweight store import-peft: finished PEFT adapters as tenants of one common."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core import CommonweightError, unknown

LABELS = "; --labels names the classes of a head, in their order"


def command(
    store: Annotated[
        Path, typer.Argument(help="Folder of the store; it is made if it does not exist.", show_default=False)
    ],
    folders: Annotated[
        list[Path], typer.Argument(help="PEFT LoRA adapters, or folders of them; a tenant is named after its folder.")
    ],
    model: Annotated[str, typer.Option(help="The adapters' base: a folder, or a name on the hub.")],
    task: Annotated[
        str | None,
        typer.Option(help="What the tenants will serve: lm, classify or embed. Without it, what the adapters say."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ADAPTER=]A,B,...",
            help="Classes of the heads, in their order; may be repeated. Without it those of the base's config.json "
            "where their number is right, else 0, 1, ...",
        ),
    ] = None,
    heads: Annotated[bool, typer.Option(help="Import the classification heads in the folders, too.")] = True,
    rank: Annotated[
        int | None, typer.Option(help="Directions of the common bases at every site; replaces --keep.", min=1)
    ] = None,
    keep: Annotated[
        float, typer.Option(help="Least share of the adapters' squared norm to keep, on average.", min=0, max=1)
    ] = 0.95,
    common: Annotated[
        str, typer.Option(help="Name of the common; tenants of the store that already use it are updated, too.")
    ] = "adapters",
    codec: Annotated[
        str | None,
        typer.Option(help="Store the numbers in fewer bytes: bfloat16, int8, int4, compeft or ordered."),
    ] = None,
    eval: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Rows to measure each adapter on, before and after; or a folder with ADAPTER.tsv and so on.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Store PEFT LoRA adapters as one common and a few numbers for each adapter."""
    from . import early

    early.model(model)
    early.codec(codec)
    early.files(folders, "folder; wanted a PEFT adapter, or a folder of them")
    early.files([] if eval is None else [eval])

    from .. import adapt
    from ..commons import Commons, import_peft
    from ..commons.adapters import adapters, classes_of, known, of_task

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = adapters(folders)
    for notice in told:
        typer.echo(f"notice: {notice.message}", err=True)
    known(found)
    rows = {n: adapt.read(f) for n, f in _rows(eval, list(found)).items()}
    task = task or of_task(found)
    classes = classes_of(found) if heads else {}
    if classes and task == "lm":
        raise CommonweightError(
            f"{found[next(iter(classes))]}: brings a classification head, for which the task lm has no place; "
            "--task classify, or --no-heads to leave the heads out"
        )
    host = adapt.open_host(model, task, pool="transformers" if classes else None)
    named: Mapping[str, Any] = dict.fromkeys(found, ())  # heads are left out
    if heads:
        named = _labels(labels or [], classes, getattr(host.model.config, "id2label", None) or {}, list(found))
    c = Commons(store, make="late")
    scores: dict[str, list[dict[str, float]]] = {}

    def measure(name: str) -> None:
        try:
            scores.setdefault(name, []).append(adapt.evaluate(host, name, rows[name], task))
        except CommonweightError as e:
            raise CommonweightError(f"--eval, {name}: {e}" + (LABELS if "the label" in str(e) else "")) from e
        host.remove(name)

    for name in rows:
        host.import_peft(name, found[name], labels=named.get(name))
        measure(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*checkpoints of its training")  # told above
        report = import_peft(c, host, folders, common=common, keep=keep, k=rank, codec=codec, labels=named)
    for name in scores:
        host.load_from(c, name)
        measure(name)
    if as_json:
        import json

        typer.echo(json.dumps(_plain(report, scores), indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(_lines(report, scores)))


def _rows(given: Path | None, names: list[str]) -> dict[str, Path]:
    """Adapter -> its file of rows."""
    from ..adapt.rows import KINDS

    if given is None:
        return {}
    if not given.is_dir():
        return dict.fromkeys(names, given)
    found = {n: next((f for k in KINDS if (f := given / f"{n}{k}").is_file()), None) for n in names}
    if lost := [n for n, f in found.items() if f is None]:
        raise CommonweightError(
            f"--eval {given}: no rows for {lost[0]}; wanted {lost[0]}.tsv, .csv, .jsonl or .parquet"
        )
    return {n: f for n, f in found.items() if f is not None}


def _labels(
    given: list[str], classes: Mapping[str, int], config: Mapping[Any, str], names: list[str]
) -> dict[str, list[str] | int]:
    """Adapter -> the classes of its head: as given, as the base's config has them, or how many they are."""
    said: dict[str, list[str]] = {}
    for text in given:
        name, at, listed = text.rpartition("=")
        if at and name not in names:
            raise unknown("adapter", name, names, "in --labels")
        if at and name not in classes:
            raise CommonweightError(f"--labels {text}: {name} brings no classification head")
        said |= dict.fromkeys([name] if at else [n for n in classes if n not in said], listed.split(","))
    base = [str(config.get(i, config.get(str(i)))) for i in range(len(config))]
    if all(b == f"LABEL_{i}" for i, b in enumerate(base)):  # what transformers writes where nobody named them
        base = []
    return {n: said.get(n) or (base if len(base) == k else k) for n, k in classes.items()}


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
