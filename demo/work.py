"""The run itself: train, save, load again, check the mixed batch. Returns plain data, for `show`."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import commonweight as cw
from commonweight.workers import cores, workers

from .mixed import check, timing
from .train import TASKS, Job, base, jobs, rows, train

PROCESSES = 4  # at most; each holds the encoder, and the longest job is a seventh of all


def work(out: Path, quick: bool = False) -> dict[str, Any]:
    """Everything from the data to results.json in `out`. quick: three tenants of one task, tiny slices.

    Tenants are trained side by side, a process for each core: small matrices keep one core busy and hardly two.
    """
    started, processor = time.perf_counter(), time.process_time()
    out.mkdir(parents=True, exist_ok=True)
    todo = jobs(out, quick)
    processes = 1 if quick else min(PROCESSES, cores())
    host = base()
    for name in [*host]:  # of a run before, in the same process
        host.remove(name)
    parameters = [*host.model.parameters()]
    about = {
        "name": "all-MiniLM-L6-v2",
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
        "dtype": str(parameters[0].dtype).removeprefix("torch."),
    }
    console = Console()
    console.print(
        f"[bold]commonweight[/bold]: one frozen encoder ({about['name']}, {about['parameters'] / 1e6:.1f} M "
        f"parameters, {about['dtype']}), {len(todo) - 1} tenants, and one that comes late to a common"
    )
    found: dict[Job, dict[str, Any]] = {}
    with bar(console, len(todo)) as done, workers(processes, preload="demo.train") as run:
        for place, told in run(train, todo):
            found[todo[place]] = told
            done(told)
    late_one = found.pop(todo[0])
    tasks = [t for t in TASKS if any(job.task == t for job in found)]
    order = {"probe": 0, "mos": 1, "lora": 2}
    tenants = [found[j] for j in sorted(found, key=lambda j: (tasks.index(j.task), order[j.method]))]
    for t in tenants:  # what is served below comes from the files
        host.load(t["tenant"], out / t["file"])
    host.load_from(cw.Commons(out / "store", make=False), late_one["tenant"])
    test = {t["tenant"]: [r["text"] for r in rows(t["task"], "test", quick)] for t in (*tenants, late_one)}
    results = {
        "command": "python -m demo --quick" if quick else "make demo",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(processes),
        "versions": {
            "commonweight": cw.__version__,
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "transformers")},
        },
        "base": about,
        "rows": {s: [len(rows(t, s, quick)) for t in tasks] for s in ("train", "dev", "test")},
        "tenants": tenants,
        "late": late_one,
        "mixed": check(host, test, 4 if quick else 8),
        "timing": [timing(host, test, n, 2 if quick else 5) for n in ((1,) if quick else (1, 4))],
    }
    results["seconds"] = round(time.perf_counter() - started, 1)
    apart = sum(t["processor seconds"] for t in (*tenants, late_one)) if processes > 1 else 0
    results["processor seconds"] = round(time.process_time() - processor + apart, 1)
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")
    return results


def machine(processes: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "system": platform.system(),
    }


@contextmanager
def bar(console: Console, total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """done(tenant): a line for each tenant that is trained, and below them a bar of all."""
    columns = (
        TextColumn("tenants trained"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        overall = progress.add_task("", total=total)

        def done(told: dict[str, Any]) -> None:
            progress.advance(overall)
            place = int(progress.tasks[overall].completed)
            console.print(
                f"{place:3d}/{total}  {told['tenant']:<11} test {100 * told['accuracy']:4.1f} %   "
                f"{told['seconds']:5.1f} s",
                highlight=False,
            )

        yield done
