"""The table of PEFT's adapter types, made from `commonweight.formats.peft.kinds`.

python docs/gen_peft.py --write    # what `make readme` runs
python docs/gen_peft.py --check    # exit code 1 when the table of docs/from-peft.md is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

from commonweight.formats.peft.kinds import KINDS, Kind

BEGIN, END = "<!-- peft:begin -->", "<!-- peft:end -->"
PAGE = Path(__file__).with_name("from-peft.md")
HOW = {
    "native": "our own method",
    "low rank": "through PEFT, exact: LoRA",
    "whole": "through PEFT, exact: whole differences; LoRA with `tolerance=`",
    "bias": "through PEFT, exact: biases",
    "refused": "refused",
}


def rows() -> str:
    """One line per type."""
    lines = [_line(name, kind) for name, kind in KINDS.items()]
    return "\n".join(["| PEFT | how it is read | |", "| --- | --- | --- |", *lines])


def _line(name: str, kind: Kind) -> str:
    return f"| `{name}` | {HOW[kind.how]} | {kind.says} |"


def main(arguments: list[str]) -> int:
    if arguments not in (["--write"], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    old = PAGE.read_text(encoding="utf-8")
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name}: the markers {BEGIN} and {END} are missing")
    new = f"{head}{begin}\n{rows()}\n{end}{tail}"
    if arguments == ["--write"]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        print("docs/from-peft.md: the table is not current; run `make readme`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
