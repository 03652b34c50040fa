"""One HTML page in one file: no script, font or picture is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

STYLE = """
:root { --back: #ffffff; --ink: #1d2a2c; --soft: #55635f; --rule: #dcd8cd; --tint: #f6f4ee; --mark: #e4f3f0;
  --link: #1c7268; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --back: #161c1e; --ink: #e8efec; --soft: #aab7b2; --rule: #3a4547;
  --tint: #1f2729; --mark: #23403c; --link: #5fcdbf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 44px 0 10px; }
p { margin: 8px 0; max-width: 76ch; } .lead { font-size: 18px; color: var(--soft); }
.note { color: var(--soft); font-size: 14px; } a { color: var(--link); }
code, pre { font: 14px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.cw-figure { width: 100%; height: auto; display: block; margin: 20px 0 8px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: left; white-space: nowrap; } th { border-bottom: 2px solid var(--rule); }
.n { text-align: right; } td small { color: var(--soft); font-size: 13px; }
tbody tr:hover, tbody tr.on { background: var(--mark); }
table.grouped tbody tr.first td { border-top: 1px solid var(--rule); }
tbody tr.best td.best { font-weight: 650; } tfoot td { border-top: 2px solid var(--rule); }
tfoot tr + tr td { border-top: 0; } th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--link); } th button::after { content: " \\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 8px 0; } dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.cw-hover { cursor: default; } .cw-hover.on .cw-dot, .cw-hover:hover .cw-dot { fill-opacity: 1; stroke-width: 4; }
#tip { position: fixed; pointer-events: none; display: none; white-space: pre; padding: 8px 12px; border-radius: 8px;
  background: var(--ink); color: var(--back); font-size: 13.5px; line-height: 1.45; z-index: 2; }
"""
SCRIPT = """
const tip = document.getElementById("tip");
const rows = key => key ? document.querySelectorAll(`[data-key="${CSS.escape(key)}"]`) : [];
const mark = (key, on) => rows(key).forEach(e => e.classList.toggle("on", on));
document.querySelectorAll(".cw-hover").forEach(dot => {
  const title = dot.querySelector("title"), text = title.textContent;
  title.remove();
  dot.setAttribute("aria-label", text);
  dot.addEventListener("pointermove", e => {
    tip.textContent = text; tip.style.display = "block";
    tip.style.left = Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.max(8, e.clientY - tip.offsetHeight - 12) + "px";
    mark(dot.dataset.key, true);
  });
  dot.addEventListener("pointerleave", () => { tip.style.display = "none"; mark(dot.dataset.key, false); });
});
document.querySelectorAll("tbody tr[data-key]").forEach(row => {
  row.addEventListener("pointerenter", () => mark(row.dataset.key, true));
  row.addEventListener("pointerleave", () => mark(row.dataset.key, false));
});
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const th = button.parentElement, table = th.closest("table"), body = table.tBodies[0];
  const was = th.getAttribute("aria-sort"), number = th.classList.contains("n");
  const down = was ? was === "ascending" : number;
  table.querySelectorAll("th").forEach(t => t.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = tr => tr.cells[th.cellIndex].dataset.sort;
  const order = (a, b) => number ? value(a) - value(b) : value(a).localeCompare(value(b));
  [...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)).forEach(tr => body.append(tr));
  table.classList.toggle("grouped", th.cellIndex === 0);
}));
"""


@dataclass(frozen=True)
class Column:
    """show: a row -> HTML. sort: a row -> what sorting goes by; a number where `number`, then right-aligned."""

    title: str
    show: Callable[[Mapping[str, Any]], str]
    sort: Callable[[Mapping[str, Any]], Any]
    number: bool = True


def table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    group: str | None = None,
    key: str | None = None,
    foot: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A table; from five rows on, a click on a column sorts it.

    group: a rule is drawn where this field changes. key: the field that a figure's dots go by. foot: rows that stay at
    the bottom; a column's `show` must know them too.
    """
    names = [escape(c.title) for c in columns]
    if len(rows) >= 5:
        names = [f'<button type="button">{name}</button>' for name in names]
    head = "".join(f'<th scope="col"{_number(c)}>{name}</th>' for c, name in zip(columns, names))
    body, before = [], object()
    for row in rows:
        first = group is not None and row[group] != before
        before = row[group] if group is not None else None
        cells = "".join(f'<td{_number(c)} data-sort="{escape(str(c.sort(row)))}">{c.show(row)}</td>' for c in columns)
        named = f' data-key="{escape(str(row[key]))}"' if key is not None else ""
        look = ' class="first"' if first else ""
        body.append(f"<tr{look}{named}>{cells}</tr>")
    under = "".join("<tr>" + "".join(f"<td{_number(c)}>{c.show(row)}</td>" for c in columns) + "</tr>" for row in foot)
    return (
        f'<div class="wide"><table class="grouped"><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(body)
        + f"</tbody>\n<tfoot>{under}</tfoot></table></div>"
    )


def _number(column: Column) -> str:
    return ' class="n"' if column.number else ""


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values, one pair a line."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """sections: (heading, HTML); a heading may be empty. title and lead are plain text."""
    parts = [(f"<h2>{escape(heading)}</h2>\n" if heading else "") + html for heading, html in sections]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        + "\n".join(parts)
        + f'\n</main><div id="tip" role="status"></div><script>{SCRIPT}</script></body></html>\n'
    )
