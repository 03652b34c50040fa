"""The table of lifelong methods in docs/streams.md, made from the registry.

python docs/gen_streams.py --write
python docs/gen_streams.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

import generated

from commonweight.lifelong import available

PAGE = Path(__file__).with_name("streams.md")


def table() -> str:
    """A line for each method."""
    lines = ["| method | carried over | a further task adds | rows kept | tasks |", "| --- | --- | --- | --- | --- |"]
    for m in available().values():
        lines.append(f"| `{m.name}` | {m.carries} | {m.grows} | {m.rows} | {', '.join(m.tasks)} |")
    papers = [f"- `{m.name}`: {m.paper}." for m in available().values()]
    return "\n".join([*lines, "", *papers])


def pages() -> generated.Pages:
    return generated.parts(PAGE, {"streams": table})


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
