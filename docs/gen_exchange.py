"""The tables of docs/exchange.md: the methods, made from the registry, and the runs, from docs/results.

python docs/gen_exchange.py --write
python docs/gen_exchange.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import marked

from commonweight.exchange import available

PAGE = Path(__file__).with_name("exchange.md")
KEPT = PAGE.parent / "results" / "exchange.json"


def table() -> str:
    """A line for each method."""
    lines = [
        "| method | bytes of a client and round | the server keeps | a client keeps | exact | mixed batch | privacy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in available().values():
        exact, mixed, noise = "yes" if m.exact else "no", m.apart or "yes", m.noise or "yes"
        lines.append(f"| `{m.name}` | {m.formula} | {m.keeps} | {m.each} | {exact} | {mixed} | {noise} |")
    papers = [f"- `{m.name}`: {m.paper}." for m in available().values()]
    return "\n".join([*lines, "", *papers])


def proof() -> str:
    """A line for each side of the runs that are kept, those of the target first."""
    if not KEPT.exists():
        return "Not measured yet."
    found = json.loads(KEPT.read_text(encoding="utf-8"))
    runs, tasks = found["runs"], found["tasks"]
    sides = list(dict.fromkeys(k.split(" | ")[0] for k in runs))
    order = [s for s in found["sides"] if s in sides]
    most = len(found["sides"]) * len(tasks) * len(found["seeds"])
    head = " | ".join(tasks)
    lines = [
        f"{len(runs)} of {most} runs so far. Accuracy in percent, the mean over the seeds that were run, how many of "
        "them in brackets where there are several; bytes of one client in a whole run, with frames and setup.",
        "",
        f"| method | numbers | bytes up | bytes down | {head} |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(tasks),
    ]
    for side in order:
        mine = {k: r for k, r in runs.items() if k.startswith(f"{side} | ")}
        some = next(iter(mine.values()))
        sent = [statistics.mean(r[k] for r in mine.values()) if k in some else None for k in ("numbers", "up", "down")]
        scores = []
        for task in tasks:
            each = [r["accuracy"] for k, r in mine.items() if k.split(" | ")[1] == task]
            many = f" ({len(each)})" if len(each) > 1 else ""
            scores.append(f"{statistics.mean(each):.1f}{many}" if each else "")
        told = ["" if v is None else f"{v:,.0f}" for v in sent]
        lines.append(f"| {side} | {' | '.join(told)} | {' | '.join(scores)} |")
    machine = found["machine"]
    return "\n".join([*lines, "", f"{machine['cpu']}, torch {machine['torch']}, {machine['date']}."])


if __name__ == "__main__":
    parts = (("exchange", table), ("proof", proof))
    sys.exit(max(marked.main(PAGE, name, made, sys.argv[1:], __doc__) for name, made in parts))
