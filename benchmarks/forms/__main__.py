"""See the package."""

from __future__ import annotations

import argparse
import os
from typing import Any

from commonweight import compare
from commonweight.compare.table import to_json
from commonweight.formats import atomic

from ..compare import TASKS, USUAL, small
from ..elsewhere.page import dumped
from ..shapes import minilm_folder
from . import page
from .page import FORMS, ROOT, Form


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks.forms")
    asked.add_argument("--only", choices=FORMS, help="one form alone")
    asked.add_argument("--table", action="store_true", help="only write the page")
    given = asked.parse_args()
    os.chdir(ROOT)
    for name in () if given.table else (given.only,) if given.only else FORMS:
        atomic.write(page.DATA, dumped(page.kept() | {name: run(FORMS[name])}).encode())
    atomic.write(page.PAGE, page.put(page.PAGE.read_text("utf-8"), page.kept()).encode())


def run(form: Form) -> dict[str, Any]:
    """The runs of a form, as the usual comparison has them. None of a budget that it does not fit."""
    data = compare.find([f"demo/data/{task}.train.tsv" for task in TASKS])
    base = minilm_folder() if form.base is None else form.base()
    wanted = compare.Comparison(
        os.path.relpath(base, ROOT), data, (form.method, *form.also), tuple(usual()["budgets"].split(",")),
        int(usual()["seeds"]), int(usual()["trials"]), options={form.method: dict(form.options)},
        recipe={"epochs": float(usual()["epochs"]), **form.recipe}, dtype=usual()["dtype"], codec=usual()["codec"],
        tune_on=usual()["tune-on"], against=form.method,
    )  # fmt: skip
    with compare.workers(jobs=1) as work:
        found = compare.compare(wanted, work, compare.Cache(ROOT / ".cache" / "forms" / "runs"))
    told = small(to_json(found, compare.points(found)))
    return {"method": form.method, **{k: told[k] for k in ("version", "metric", "misfits", "points")}}


def usual() -> dict[str, str]:
    return {flag.removeprefix("--"): value for flag, value in USUAL.items()} | {"budgets": "16KB,256KB,default"}


if __name__ == "__main__":
    main()
