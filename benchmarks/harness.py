"""Both sides in one process, in turn, so that whatever else the machine does hits both alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
DEVICE = torch.device(os.environ.get("COMMONWEIGHT_BENCH_DEVICE", "cpu"))  # cuda: results lie in their own folder


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 15, warm: int = 3) -> dict[str, Any]:
    """Times two functions in turn. ratio: median over rounds of ours / theirs; spread: its quartiles."""
    for _ in range(warm):
        ours(), theirs(), wait()
    a, b = [], []
    for i in range(rounds):
        for side, out in ((ours, a), (theirs, b)) if i % 2 else ((theirs, b), (ours, a)):
            start = time.perf_counter()
            side(), wait()
            out.append(time.perf_counter() - start)
    ratios = [x / y for x, y in zip(a, b)]
    low, mid, high = statistics.quantiles(ratios, n=4)
    return {
        "ours_ms": round(1e3 * statistics.median(a), 3),
        "theirs_ms": round(1e3 * statistics.median(b), 3),
        "ratio": round(mid, 3),
        "spread": [round(low, 3), round(high, 3)],
        "rounds": rounds,
    }


def wait() -> None:
    """Until the device has done what it was asked for."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak(step: Callable[[], Any], steps: int = 3) -> dict[str, float]:
    """MB: the peak over some steps, and what of it was not there before. Of a CPU's process all that is resident."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, after loading
    before = resident("VmRSS")
    for _ in range(steps):
        step()
    high = resident("VmHWM")
    return {"peak_mb": round(high / 2**20, 1), "steps_mb": round((high - before) / 2**20, 1)}


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most. ru_maxrss will not do: it starts at the parent's size."""
    if DEVICE.type == "cuda":
        return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
    return 1024 * int(next(line for line in _lines("/proc/self/status") if line.startswith(field)).split()[1])


def compared(what: str, unit: str, target: float | None, ours: list[float], theirs: list[float], **more: Any) -> dict:
    """A row of two lists of figures. ratio: the median of ours / theirs; spread: the least and the largest."""
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    return {
        "what": what, "unit": unit, "target": target, "ratio": round(statistics.median(ratios), 3),
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)], "rounds": len(ratios), **more,
    }  # fmt: skip


def in_fresh_process(module: str, *args: str) -> dict[str, Any]:
    """Runs ``python -m module args`` alone and reads the JSON object on its last line. For peak memory."""
    out = subprocess.run([sys.executable, "-m", module, *args], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    name = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    on = {"device": torch.cuda.get_device_name()} if DEVICE.type == "cuda" else {}
    return {
        **on,
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "revision": revision(),
        "load": round(os.getloadavg()[0], 1),
    }


def revision() -> str:
    """Of this checkout, with + where files differ from it; empty outside of git."""
    line = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=8", "--dirty=+"]
    return subprocess.run([*line, "--exclude=*"], capture_output=True, text=True).stdout.strip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def store(name: str, rows: list[dict[str, Any]]) -> None:
    folder = RESULTS if DEVICE.type == "cpu" else RESULTS / DEVICE.type
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n")
