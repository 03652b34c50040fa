"""The table of exchange methods in docs/exchange.md, made from the registry.

python docs/gen_exchange.py --write
python docs/gen_exchange.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

import marked

from commonweight.exchange import available

PAGE = Path(__file__).with_name("exchange.md")


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


if __name__ == "__main__":
    sys.exit(marked.main(PAGE, "exchange", table, sys.argv[1:], __doc__))
