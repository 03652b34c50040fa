"""The tables of methods, made from the registry and from the plans themselves.

A hook of mkdocs (the page ``methods.md`` exists only in the built site), and a command for the README:

    python docs/gen_methods.py --write README.md    # between the markers methods:begin and methods:end
    python docs/gen_methods.py --check README.md    # exit code 1 when the table there is not current
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

INTRODUCTION = """\
This page is made from the registry and from the plans when the documentation is built.

- *On BERT base*: trainable numbers with default options, on the sites the method takes by default, in twelve layers of
  width 768; without a task's head.
- *Merge*: the change can be written into ordinary weights (`Host.merged`).
- *Grouped*: in a batch of many tenants of this method, all rows of a linear layer run in one batched product;
  *partly*: at some of its sites. Without it each tenant's rows run by themselves; the result is the same.
- *PEFT*: what `Host.export_peft` writes: the method's *own* format in PEFT (plain LoRA when asked), or plain *LoRA*.
- *Fresh*: what a new, untrained tenant does to the base.

A dash: nothing to say, since the method changes no site or no linear weight."""

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
]


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


def _short(paper: str) -> str:
    """The address alone where there is one."""
    found = re.search(r"arXiv (\d{4}\.\d{4,5})", paper)
    return _link(found[0]) if found else paper.replace("|", "\\|")


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]


def readme_table() -> str:
    """One line per method."""
    rows = ["| method | paper | trained parameters | on BERT base | merge |", "| --- | --- | --- | ---: | --- |"]
    for name, m in cw.methods.available().items():
        f = facts(m)
        rows.append(f"| `{name}` | {_short(m.paper)} | {m.formula} | {f['count']:,} | {_yes(f['merge'])} |")
    return "\n".join(rows)


def page() -> str:
    """The page ``methods.md``: the table, then every method with its options and its formula."""
    methods = cw.methods.available()
    out = [
        "# Methods",
        INTRODUCTION,
        "| method | reads | trained parameters | on BERT base | merge | grouped | PEFT | fresh |",
        "| --- | --- | --- | ---: | --- | --- | --- | --- |",
    ]
    for name, m in methods.items():
        f = facts(m)
        fresh = "exact" if m.fresh == "exact" else f"not exact: {m.fresh}"
        kinds = ", ".join(m.kinds) or "nothing"
        cells = [
            f"[`{name}`](#{name})",
            kinds,
            m.formula,
            f"{f['count']:,}",
            _yes(f["merge"]),
            f["grouped"] or "-",
            fresh,
        ]
        out.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    text = "\n\n".join(out[:2]) + "\n\n" + "\n".join(out[2:]) + "\n"
    return text + "".join(_section(name, m) for name, m in methods.items())


def _section(name: str, m: Method) -> str:
    module = inspect.getmodule(m.plan)
    lines = [f"\n## {name}\n", f"{inspect.getdoc(module) or ''}\n", f"Paper: {_link(m.paper)}.\n"]
    roles = ", ".join(m.roles) if m.roles else "all" if m.kinds else "none"
    lines.append(f"Projections by default: {roles}. Learning rate by default: {m.lr:g}.\n")
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
    """The README with the table between the markers made anew."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the markers {BEGIN} and {END} are missing")
    return f"{head}{begin}\n{readme_table()}\n{end}{tail}"


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls this: adds the generated page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "methods.md", content=page()))
    return files


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("--write", "--check"):
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[1])
    old = path.read_text(encoding="utf-8")
    new = replace(old)
    if arguments[0] == "--write":
        path.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{path}: the table of methods is not current; run `make readme`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
