"""See the package."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from commonweight import CommonweightError
from commonweight.formats import atomic

from ..harness import machine
from . import page
from .bases import Base, minilm, smollm2
from .pace import paces
from .run import Cell, cells, measured


def kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {"machine": machine(), "originals": {}, "runs": {}}


def keep(path: Path, found: dict[str, Any]) -> None:
    """A line for each run."""
    runs = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(found["runs"].items()))
    head = json.dumps({**found, "runs": {}}, indent=1).replace('"runs": {}', f'"runs": {{\n{runs}\n }}')
    atomic.write(path, head.encode() + b"\n")


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    asked.add_argument("--data", type=Path, help="a folder with books, gsm8k and sentences")
    asked.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct; none: MiniLM alone")
    asked.add_argument("--minutes", type=float, default=60, help="no run is begun after so long (60)")
    asked.add_argument("--only", default="", help="runs whose name has this in it")
    asked.add_argument("--pace", action="store_true", help="measure what a pass of each finished run costs")
    asked.add_argument("--table", action="store_true", help="only write the page")
    given = asked.parse_args()
    if not given.table:
        if given.data is None:
            asked.error("--data names the folder with books, gsm8k and sentences")
        bases = [minilm(given.data), *([smollm2(given.smollm2, given.data)] if given.smollm2 else [])]
        (pace if given.pace else run)(bases, 60 * given.minutes, given.only)
    page.write()


def run(bases: list[Base], seconds: float, only: str) -> None:
    console, until = Console(), time.monotonic() + seconds
    for base in bases:
        model = base.load()
        found = kept(page.DATA)
        if base.name not in found["originals"]:
            found["originals"][base.name] = {"figures": base.figures(model), "main": base.main, "tokens": base.tokens}
            keep(page.DATA, found)
        for cell in cells(base, model):
            if only not in cell.key or cell.key in kept(page.DATA)["runs"]:
                continue
            if time.monotonic() > until:
                return
            try:
                result = measured(cell, base, model, console.print)
            except CommonweightError as e:  # a method that this base is not for
                console.print(f"{cell.key}: left out; {e}")
                continue
            console.print(cell.key, result.get("healed", result["unhealed"]), f"{result['cpu_s']} s")
            found = kept(page.DATA)
            found["runs"][cell.key] = result
            keep(page.DATA, found)


def pace(bases: list[Base], seconds: float, only: str) -> None:
    """Of every finished run that has none."""
    until = time.monotonic() + seconds
    for base in bases:
        model = base.load()
        for key, told in kept(page.DATA)["runs"].items():
            if told["base"] != base.name or "pace" in told or only not in key or time.monotonic() > until:
                continue
            cell = Cell(**{f: told[f] for f in Cell._fields})
            found = kept(page.DATA)
            found["runs"][key] |= paces(base, model, cell)
            keep(page.DATA, found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
