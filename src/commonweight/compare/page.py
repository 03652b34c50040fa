"""The comparison as one HTML page in one file: plot, table, curves and commands. It loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core import CommonweightError
from ..formats import atomic
from ..report import page
from .driver import Outcome
from .summary import ALL, Point
from .table import caption, headline, heads, markdown, to_json

TITLE = "Methods at equal bytes"


FILES = ("results.json", "table.md", "index.html")


def ready(folder: Path, overwrite: bool = False) -> None:
    """Raises: CommonweightError when no page can be written there, or one is there and not to be overwritten; better
    known before the first run."""
    if folder.exists() and not folder.is_dir():
        raise CommonweightError(f"--report {folder} is a file; wanted a folder")
    if find_spec("plotly") is None:
        raise CommonweightError("--report needs plotly: pip install 'commonweight[compare]'")
    for name in FILES:
        atomic.free(folder / name, "--report", overwrite=overwrite)


def write(folder: Path, o: Outcome, points: Sequence[Point], *, overwrite: bool = False) -> Path:
    """index.html, table.md and results.json in `folder`, each whole or not at all. Size: 5 MB, most of it plotly.js.
    Raises: as `ready`."""
    ready(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    results = to_json(o, points)
    atomic.write(folder / "results.json", (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    atomic.write(folder / "table.md", markdown(o, points).encode())
    return atomic.write(folder / "index.html", render(results, heads(o), headline(o), caption(o)).encode())


def render(results: dict[str, Any], columns: Sequence[str], lead: str, note: str) -> str:
    """The page of a comparison's results, as `table.to_json` makes them."""
    from plotly.offline import get_plotlyjs

    tasks = [ALL, *(d["name"] for d in results["comparison"]["data"])]
    choices = "".join(f"<option>{escape(t)}</option>" for t in tasks)
    top = (
        f"<style>{_asset('page.css')}</style>"
        '<form class="controls" onsubmit="return false">'
        f'<label>Task <select id="task">{choices}</select></label>'
        '<label>Filter <input id="filter" type="search" placeholder="method or option" autocomplete="off"></label>'
        '<label class="check"><input id="front" type="checkbox"> Pareto front only</label></form>'
        '<div id="chips" class="chips" role="group" aria-label="Methods shown"></div>'
        '<div id="plot" role="img" aria-label="Quality against bytes; the table below has the same numbers"></div>'
        '<p class="note">Bars: 95 % interval over seeds. Dashed: the Pareto front. A click on a point, or on a name in '
        "the table, shows its runs.</p>"
    )
    head = "".join(
        f'<th scope="col"{"" if i == 0 else " class=n"}><button type="button">{escape(c)}</button></th>'
        for i, c in enumerate(columns)
    )
    table = (
        f'<p id="count" class="note" role="status"></p><div class="wide" tabindex="0" role="region" '
        f'aria-label="Table of configs"><table id="table"><thead><tr>{head}</tr></thead><tbody></tbody></table></div>'
        f'<p class="note">{escape(note)}</p>'
    )
    misfits = "".join(
        f"<li>{escape(m['budget'])}: {escape(m['method'])} starts at {m['nbytes']:,} bytes</li>"
        for m in results["misfits"]
    )
    misfits += "".join(f"<li>{escape(m['method'])} is left out: {escape(m['why'])}</li>" for m in results["left_out"])
    sections = [("", top), ("Runs", '<div id="detail" tabindex="-1"></div>'), ("All configs", table)]
    if misfits:
        sections.append(("Budgets that a method cannot meet", f"<ul>{misfits}</ul>"))
    data = json.dumps(results, ensure_ascii=False).replace("</", "<\\/")
    code = (
        f"<script>{get_plotlyjs()}</script>"
        f'<script type="application/json" id="results">{data}</script><script>{_asset("page.js")}</script>'
    )
    sections.append(("", code))
    return page(TITLE, f"{lead}. Base: {results['comparison']['model']}.", sections)


def _asset(name: str) -> str:
    return files("commonweight.compare").joinpath(name).read_text("utf-8")
