"""See the package."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from commonweight.formats import atomic

from ..compare import commonweight_ends, small
from . import bases, page

CACHE = Path(".cache/elsewhere")  # within the repository, whose folder the commands are run in
USUAL = {
    "--against": "lora", "--codec": "bfloat16", "--seeds": "3", "--trials": "3", "--tune-on": "trec", "--epochs": "2",
    "--dtype": "bfloat16", "--cache": str(CACHE / "runs"),
}  # fmt: skip


class Part(NamedTuple):
    """The model of a method's part, made by `make(given)`; the folder and ending of its rows; what is compared."""

    make: Callable[[argparse.Namespace], Path]
    rows: tuple[Path, str]
    more: tuple[str, ...]


DEMO, ASKED = (Path("demo/data"), "tsv"), (CACHE / "questions", "jsonl")
PARTS = {
    "state-offset": Part(
        lambda given: bases.states(given.data, CACHE / "states"), DEMO,
        ("--methods", "state-offset,lora,probe", "--budgets", "4.2KB,36KB"),
    ),
    "esft": Part(
        lambda given: bases.mixture(given.data, CACHE / "experts"), DEMO,
        ("--methods", "esft,full,lora,probe", "--epochs", "4", "--batch-size", "16", "--trials", "8"),
    ),
    "pema": Part(
        lambda given: bases.words(given.smollm2, CACHE / "words"), ASKED,
        ("--task", "lm", "--methods", "pema,lora", "--budgets", "1200KB", "-o", "pema.rank=512"),
    ),
}  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks.elsewhere", description=__doc__)
    asked.add_argument("--data", type=lambda p: Path(p).resolve(), help="a folder with books")
    asked.add_argument("--smollm2", type=lambda p: Path(p).resolve(), help="folder of SmolLM2-135M-Instruct")
    asked.add_argument("--only", choices=PARTS, help="one part alone")
    asked.add_argument("--table", action="store_true", help="only write the page")
    asked.add_argument(
        "--again", metavar="METHOD", help="with --only: this method's accuracies anew, in float32, beside what is kept"
    )
    given = asked.parse_args()
    os.chdir(bases.ROOT)
    for name in () if given.table else (given.only,) if given.only else PARTS:
        needed = "smollm2" if name == "pema" else "data"
        if getattr(given, needed) is None:
            asked.error(f"{name} is measured on a model that is made of --{needed}")
        run(name, given)
    page.write()


def run(name: str, given: argparse.Namespace) -> None:
    part = PARTS[name]
    model, (folder, ending) = part.make(given), part.rows
    if part.rows == ASKED:
        bases.questions(folder)
    files = [str(folder / f"{task}.train.{ending}") for task in bases.TASKS]
    usual, more = dict(USUAL), list(part.more)
    if given.again:
        usual["--dtype"], more[more.index("--methods") + 1] = "float32", given.again
        del usual["--against"]
    called = ["compare", str(model), *files, *(word for pair in usual.items() for word in pair), *more]
    report = CACHE / "report" / name
    commonweight_ends([*called, "--report", str(report), "--overwrite"])
    found: dict[str, Any] = json.loads((report / "results.json").read_text("utf-8"))
    if found["metric"] != "accuracy":
        found |= {"points": page.scored(found["points"], "token_accuracy"), "metric": "accuracy"}
    command, kept = shlex.join(["commonweight", *called]), page.kept()
    if given.again:
        told = page.renewed(kept[name], small(found)["points"], USUAL["--against"]) | {"again": command}
    else:
        found["points"] = page.beside(found["points"], USUAL["--against"])
        told = page.told(small(found), command)
    atomic.write(page.DATA, page.dumped(kept | {name: told}).encode())


if __name__ == "__main__":
    main()
