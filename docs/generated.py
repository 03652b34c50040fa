"""What is generated: the text of each page and picture, or of the part of a page between `<!-- NAME:begin -->` and
`<!-- NAME:end -->`.

A generator, gen_NAME.py, has `pages()`: each file that it makes -> what is to stand in it.

python docs/generated.py    # exit code 1 when one of them, or of the benchmarks' tables, is not current

In one process for all of them: to load the library takes longer than most of them do.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

DOCS = Path(__file__).parent
Pages = Mapping[Path, str]


def part(text: str, name: str, made: str, page: str) -> str:
    """The text of a page, with the part of that name made anew. Raises: SystemExit where the page has no such part."""
    start, stop = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, begin, rest = text.partition(start)
    _, end, tail = rest.partition(stop)
    if not begin or not end:
        raise SystemExit(f"{page}: the markers {start} and {stop} are missing")
    return f"{head}{begin}\n{made}\n{end}{tail}"


def parts(page: Path, made: Mapping[str, Callable[[], str]]) -> Pages:
    """A page of which these parts are generated, by name."""
    text = page.read_text(encoding="utf-8")
    for name, make in made.items():
        text = part(text, name, make(), page.name)
    return {page: text}


def main(pages: Callable[[], Pages], arguments: Sequence[str], told: str | None) -> int:
    """--write writes the pages; --check tells whether they are current. told: what other arguments are answered by."""
    if arguments not in (["--write"], ["--check"]):
        print(told, file=sys.stderr)
        return 2
    if arguments == ["--check"]:
        return check(pages)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


def check(pages: Callable[[], Pages]) -> int:
    """1 where a page is not current, which it says with what makes it anew."""
    by = Path(inspect.getfile(pages)).name
    old = [p for p, text in pages().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path in old:
        print(
            f"{path.relative_to(DOCS.parent)} is not current; python docs/{by} --write makes it anew", file=sys.stderr
        )
    return 1 if old else 0


def every() -> int:
    sys.path.append(str(DOCS.parent))
    codes = [check(import_module(path.stem).pages) for path in sorted(DOCS.glob("gen_*.py"))]
    return max(*codes, import_module("benchmarks.__main__").check())


if __name__ == "__main__":
    sys.exit(every())
