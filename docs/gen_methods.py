"""The page of methods, made from the registry and from the plans themselves.

The tables between two markers of docs/methods.md (one line a method) and of the README (one line a family) are written
by a command; when the site is built, a hook of mkdocs adds a section for each method, with its options and formula:

    python docs/gen_methods.py --write    # what `make readme` runs
    python docs/gen_methods.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import generated

import commonweight as cw
from commonweight.core import WEIGHTLESS, table
from commonweight.formats.peft import FAMILIES
from commonweight.methods import Method

PAGE = Path(__file__).with_name("methods.md")
README = PAGE.parents[1] / "README.md"

# A model of twelve layers in the shapes of BERT base: every kind of site a method may read.
_LINEAR = (("q", 768, 768, "query"), ("k", 768, 768, "key"), ("v", 768, 768, "value"), ("o", 768, 768, "attn_out"),
           ("up", 3072, 768, "up"), ("down", 768, 3072, "down"))  # fmt: skip
SAMPLE = [
    site
    for i in range(12)
    for site in (
        *(cw.Site(f"layers.{i}.{name}", out, inp, "linear", role) for name, out, inp, role in _LINEAR),
        cw.Site(f"layers.{i}.norm", 768, 1, "norm"),
        cw.Site(f"layers.{i}", 768, 768, "block", "", False),
        cw.Site(f"layers.{i}.attention", 768, 768, "attention", "", False),
        cw.Site(f"layers.{i}.ffn", 768, 768, "ffn", "", False),
        cw.Site(f"layers.{i}.attention.prefix", 768, 64, "prefix", "", False),
        cw.Site(f"layers.{i}.attention.aside", 12, 768, "aside", "", False),
    )
] + [
    cw.Site("embed.prompt", 768, 768, "prompt", "", False),
    cw.Site("embed.positions", 768, 1, "positions", "", False),
    cw.Site("embed", 768, 30522, "embedding", "", False),
    cw.Site("layers.trunk", 768, 13 * 768 + 1, "trunk", "whole", False),
    cw.Site("layers.early", 768, 12 * 768 + 1, "trunk", "early", False),
    cw.Site("layers.queries", 768, 12 * 768, "queries", "", False),
]
EXPERTS = [cw.Site(f"layers.0.experts.up[{e}]", 3072, 768, "expert", "up", False) for e in range(8)]  # BERT has none
STATES = [cw.Site(f"layers.{i}.mixer.state", 1536, 16, "state", "", False) for i in range(24)]  # nor these
ELSEWHERE = EXPERTS + STATES


def sample_plan(method: Method) -> cw.Plan:
    """The method with its default options on the sites of the sample that it takes by default."""
    mine = [s for s in SAMPLE if s.kind in method.kinds] or [s for s in ELSEWHERE if s.kind in method.kinds]
    chosen = [s for s in mine if s.role in method.roles] or mine
    return cw.plan(method.name, chosen)


def facts(method: Method) -> dict[str, str]:
    """What the plan's binds can do; none of it is written by hand. Column -> cell."""
    plan = sample_plan(method)
    kinds = {s.name: s.kind for s in SAMPLE + ELSEWHERE}
    none = any(kinds[u.site] in ("expert", "state") for u in plan.uses)
    linear = [u for u in plan.uses if kinds[u.site] == "linear"]  # the host takes the fast paths at linear sites only
    merges = all(hasattr(u.bind, "weight") for u in plan.uses)
    grouped = [hasattr(u.bind, "grouped") for u in plan.uses if kinds[u.site] in ("linear", *WEIGHTLESS)]
    to_lora = merges and len(linear) == len(plan.uses)
    nothing = not plan.uses
    return {
        "on BERT base": "none" if none else f"{plan.count():,}",
        "merge": "-" if nothing else _yes(merges),
        "mixed batch": "-" if nothing else _degree(grouped, "one product", "partly", "each apart"),
        "quantised base": "-" if nothing else _quantised(plan, linear or [*plan.uses]),
        "experts": _yes("expert" in (*method.kinds, *method.named)),
        "common pools": _yes(bool(method.common)),
        "PEFT file": next((kind for kind, f in FAMILIES.items() if method.name in f.methods), "-"),
        "to LoRA": "-"
        if nothing or not to_lora
        else _degree([hasattr(u.bind, "factors") for u in linear], "exact", "fitted", "fitted"),
        "fresh": "exact" if method.fresh == "exact" else "not exact",
    }


def _degree(has: list[bool], whole: str, part: str, none: str) -> str:
    return whole if has and all(has) else part if any(has) else none


def _quantised(plan: cw.Plan, linear: list[cw.core.Use]) -> str:
    """How often a weight of the base is read, and so dequantised: what has no fast form is computed with the weight."""
    binds = {type(u.bind) for u in linear}
    slow = any(not (hasattr(b, "output") or hasattr(b, "input")) for b in binds)
    if slow or any("base.weight" in inspect.getsource(b) for b in binds):
        return "each call"
    inits = {type(p.init) for p in plan.pools.values()}
    return "once" if any(re.search(r"\bbase[.,)]", inspect.getsource(i)) for i in inits) else "never"


def _link(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper).replace("|", "\\|")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def rows() -> str:
    """The table: one line per method."""
    out: list[str] = []
    for name, m in cw.methods.available().items():
        found = facts(m)
        if not out:
            out = [_cells(["method", "family", "paper", "trained numbers", *found])]
            out.append("| --- | --- | --- | --- | ---: |" + " --- |" * (len(found) - 1))
        out.append(
            _cells([f"`{name}`", said(m.family)[0].lower(), _number(m.paper) + _unread(m), m.formula, *found.values()])
        )
    return "\n".join(out)


def said(family: str) -> tuple[str, str]:
    """A family's name in words, and what its methods do: the first line of its folder's docstring."""
    name, _, what = (inspect.getdoc(getattr(cw.methods, family)) or "").split("\n")[0].partition(": ")
    return name, what


def by_family() -> str:
    """The README's table: one line per family."""
    found: dict[str, list[str]] = {}
    for name, m in cw.methods.available().items():
        found.setdefault(m.family, []).append(f"`{name}`")
    lines = [
        _cells([f"[{said(f)[0]}](src/commonweight/methods/{f})", said(f)[1], ", ".join(found[f])])
        for f in sorted(found)
    ]
    return "\n".join(["| family | what its methods do | methods |", "| --- | --- | --- |", *lines])


def _number(paper: str) -> str:
    """The number of the paper as a link, where it is on arXiv."""
    found = re.search(r"arXiv (\d{4}\.\d{4,5})", paper)
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else paper


def _unread(m: Method) -> str:
    """What the docstring says of a paper that was not read whole: its abstract was, or its text was not."""
    doc = inspect.getdoc(m.plan) or ""
    if re.search(r"\babstract\b", doc, re.IGNORECASE):
        return ", *abstract*"
    unread = re.search(r"\btext\b[^.;]*\bnot\s+(read|available)\b|\bcould\s+not\s+be\s+read\b", doc)
    return ", *not its text*" if unread else ""


def _section(name: str, m: Method) -> str:
    module = inspect.getmodule(m.plan)
    lines = [f"\n## {name}\n", f"{inspect.getdoc(module) or ''}\n", f"Paper: {_link(m.paper)}.\n"]
    roles = ", ".join(m.roles) if m.roles else "all" if m.kinds else "none"
    kinds = ", ".join(m.kinds) or "nothing"
    lines.append(f"Reads: {kinds}. Projections by default: {roles}. Learning rate by default: {m.lr:g}.\n")
    if m.fresh != "exact":
        lines.append(f"A new tenant changes the base a little: {m.fresh}.\n")
    if m.common:
        lines.append(f"Shared by the tenants of a common: {m.common}.\n")
    if doc := inspect.getdoc(m.plan):
        lines.append("```text\n" + doc + "\n```\n")
    options = table(m.config)
    if options:
        lines += ["| option | type | default | |", "| --- | --- | --- | --- |"]
        for option, kind, default, text in options:
            cells = [f"`{option}`", f"`{kind}`", f"`{'none' if default is None else default}`", text]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def replace(text: str, table: str, page: str) -> str:
    """The page with the table between the markers made anew, and the number of methods where it is told."""
    n = len(cw.methods.available())
    text = re.sub(r"\b\d+(?= published methods\b)|(?<=\bthe )\d+(?= methods\b)", str(n), text)
    return generated.part(text, "methods", table, page) if table else text


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs calls this for every page: methods.md gets its sections, and a link to each from the table."""
    if page.file.src_uri != PAGE.name:
        return markdown
    linked = re.sub(r"^\| `([\w-]+)` ", r"| [`\1`](#\1) ", markdown, flags=re.M)
    return linked + "".join(_section(name, m) for name, m in cw.methods.available().items())


def pages() -> generated.Pages:
    tables = {PAGE: rows(), README: by_family(), PAGE.with_name("index.md"): ""}
    return {page: replace(page.read_text(encoding="utf-8"), made, page.name) for page, made in tables.items()}


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
