"""The table of PEFT's adapter types, made from `commonweight.formats.peft.kinds`.

python docs/gen_peft.py --write    # what `make readme` runs
python docs/gen_peft.py --check    # exit code 1 when the table of docs/from-peft.md is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

import generated

from commonweight.formats.peft.kinds import KINDS, Kind

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


def pages() -> generated.Pages:
    return generated.parts(PAGE, {"peft": rows})


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
