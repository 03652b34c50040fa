"""The page of methods, made from the registry and from the plans themselves.

The table between two markers of docs/methods.md is written by a command; a hook of mkdocs adds, when the site is built,
a section for each method, with its options and its formula:

    python docs/gen_methods.py --write    # what `make readme` runs
    python docs/gen_methods.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import commonweight as cw
from commonweight.core import table
from commonweight.formats.peft import FAMILIES
from commonweight.methods import Method

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"

PAGE = Path(__file__).with_name("methods.md")

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
    )
] + [cw.Site("embed", 768, 30522, "embedding", "", False)]


def sample_plan(method: Method) -> cw.Plan:
    """The method with its default options on the sites of the sample that it takes by default."""
    mine = [s for s in SAMPLE if s.kind in method.kinds]
    chosen = [s for s in mine if s.role in method.roles] or mine
    return cw.plan(method.name, chosen)


def facts(method: Method) -> dict[str, Any]:
    """What the plan's binds can do; none of it is written by hand."""
    plan = sample_plan(method)
    kinds = {s.name: s.kind for s in SAMPLE}
    # The host takes the grouped path at linear sites only.
    grouped = [hasattr(u.bind, "grouped") and kinds[u.site] == "linear" for u in plan.uses]
    return {
        "count": plan.count(),
        "merge": all(hasattr(u.bind, "weight") for u in plan.uses) if plan.uses else None,
        "peft": _peft(method.name, plan, kinds),
        "grouped": None if not grouped else "yes" if all(grouped) else "partly" if any(grouped) else "no",
    }


def _peft(name: str, plan: cw.Plan, kinds: dict[str, str]) -> str:
    """What `Host.export_peft` can write."""
    if any(name in family.methods for family in FAMILIES.values()):
        return "own"
    linear = all(hasattr(u.bind, "weight") and kinds[u.site] == "linear" for u in plan.uses)
    return "LoRA" if linear and plan.uses else "-"


def _link(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper).replace("|", "\\|")


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]


def rows() -> str:
    """The table: one line per method."""
    out = [
        "| method | paper | trained numbers | on BERT base | merge | grouped | PEFT | fresh |",
        "| --- | --- | --- | ---: | --- | --- | --- | --- |",
    ]
    for name, m in cw.methods.available().items():
        f = facts(m)
        fresh = "exact" if m.fresh == "exact" else "not exact"
        merge, grouped = _yes(f["merge"]), f["grouped"] or "-"
        cells = [f"`{name}`", _number(m.paper), m.formula, f"{f['count']:,}", merge, grouped, f["peft"], fresh]
        out.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(out)


def _number(paper: str) -> str:
    """The number of the paper as a link, where it is on arXiv."""
    found = re.search(r"arXiv (\d{4}\.\d{4,5})", paper)
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else paper


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


def replace(text: str) -> str:
    """The page with the table between the markers made anew."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name}: the markers {BEGIN} and {END} are missing")
    return f"{head}{begin}\n{rows()}\n{end}{tail}"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs calls this for every page: methods.md gets its sections, and a link to each from the table."""
    if page.file.src_uri != PAGE.name:
        return markdown
    linked = re.sub(r"^\| `([\w-]+)` ", r"| [`\1`](#\1) ", markdown, flags=re.M)
    return linked + "".join(_section(name, m) for name, m in cw.methods.available().items())


def main(arguments: list[str]) -> int:
    if arguments not in (["--write"], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    old = PAGE.read_text(encoding="utf-8")
    new = replace(old)
    if arguments == ["--write"]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        print("docs/methods.md: the table is not current; run `make readme`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
