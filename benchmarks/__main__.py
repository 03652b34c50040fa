"""Runs every benchmark, or those named, and writes the tables of the README and of docs/results/benchmarks.md.

python -m benchmarks [NAME ...]        run, then write the tables
python -m benchmarks --table           only write the tables, from benchmarks/results
python -m benchmarks --check           exit code 1 when the tables are not those of benchmarks/results
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings

from rich.console import Console

from .tables import ROOT, shown, written

ALL = (
    "training_step",
    "training_memory",
    "side_memory",
    "mixed_precision",
    "adding_tenants",
    "mixed_batch",
    "prefix",
    "experts",
    "mixture",
    "qlora",
    "packing",
    "serving",
    "skipping",
    "road_batching",
    "file_size",
    "one_bit",
    "accuracy",
    "recipes",
    "store",
    "codecs",
    "share_memory",
    "share_running",
    "share_depth",
    "exchange_seeds",
)
SLOW = ("commons", "exchange")  # an hour and more: only by name
NAMES = (*ALL, *SLOW)


def write() -> None:
    for path, text in written(NAMES).items():
        path.write_text(text, encoding="utf-8")


def check() -> int:
    old = [path for path, text in written(NAMES).items() if path.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{path.relative_to(ROOT)}: not what benchmarks/results say; run python -m benchmarks --table")
    return 1 if old else 0


def main(names: list[str]) -> None:
    if unknown := set(names) - set(NAMES):
        raise SystemExit(f"unknown benchmark {sorted(unknown)}; there are {', '.join(NAMES)}")
    console = Console()
    for name in names or ALL:
        console.rule(name)
        for row in importlib.import_module(f"benchmarks.{name}").main():
            console.print(row["what"], *shown(row), sep="  ")
    write()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if sys.argv[1:] == ["--table"]:
        write()
    elif sys.argv[1:] == ["--check"]:
        sys.exit(check())
    else:
        main(sys.argv[1:])
