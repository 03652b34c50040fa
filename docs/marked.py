"""A page with a part that is generated, between the markers `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def main(page: Path, name: str, made: Callable[[], str], arguments: Sequence[str], told: str | None) -> int:
    """--write puts the part there; --check tells whether it is current. told: what other arguments are answered by."""
    if arguments not in (["--write"], ["--check"]):
        print(told, file=sys.stderr)
        return 2
    start, stop = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = page.read_text(encoding="utf-8")
    head, begin, rest = old.partition(start)
    _, end, tail = rest.partition(stop)
    if not begin or not end:
        raise SystemExit(f"{page.name}: the markers {start} and {stop} are missing")
    new = f"{head}{begin}\n{made()}\n{end}{tail}"
    if arguments == ["--write"]:
        page.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"docs/{page.name}: the table is not current; {sys.argv[0]} --write makes it anew", file=sys.stderr)
        return 1
    return 0
