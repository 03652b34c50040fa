"""The table of exchange methods in docs/exchange.md, made from the registry.

python docs/gen_exchange.py --write
python docs/gen_exchange.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

from commonweight.exchange import available

PAGE = Path(__file__).with_name("exchange.md")
BEGIN, END = "<!-- exchange:begin -->", "<!-- exchange:end -->"


def table() -> str:
    """A line for each method."""
    lines = [
        "| method | bytes of a client and round | the server keeps | a client keeps | exact | mixed batch | privacy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in available().values():
        exact, mixed, noise = "yes" if m.exact else "no", m.apart or "yes", m.noise or "could be added, is not built"
        lines.append(f"| `{m.name}` | {m.formula} | {m.keeps} | {m.each} | {exact} | {mixed} | {noise} |")
    papers = [f"- `{m.name}`: {m.paper}." for m in available().values()]
    return "\n".join([*lines, "", *papers])


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--write" in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    return int("--check" in sys.argv and new != page)


if __name__ == "__main__":
    sys.exit(main())
