"""The house in one picture: the packages of the library, and the rooms of merge, as floors that stand on one another.

The floors are those that import-linter holds (pyproject.toml), the arrows are the imports, the words are the first of
each package's own docstring. So the picture cannot say what is not so:

    python docs/gen_house.py --write    # docs/img/house.svg, and the list between the markers in docs/idea.md
    python docs/gen_house.py --check    # exit code 1 when one of them is not current
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import generated
import grimp

ROOT = Path(__file__).parents[1]
PICTURE, PAGE = ROOT / "docs" / "img" / "house.svg", ROOT / "docs" / "idea.md"
WORDS = 84  # characters of a docstring that a row has place for

Imports = Mapping[str, set[str]]


class House(NamedTuple):
    """Packages on their floors, from the top; imports: package -> those that it imports."""

    title: str
    floors: list[list[str]]
    imports: Imports
    words: dict[str, str]

    @property
    def rows(self) -> list[str]:
        return [name for floor in self.floors for name in floor]


# -- what is so -------------------------------------------------------------------------------------------------------


def houses() -> list[House]:
    """The whole, and its largest part. Raises: ValueError for a package that stands on no floor."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [c for c in contracts if c["type"] == "layers"]
    graph = grimp.build_graph("commonweight", exclude_type_checking_imports=True, cache_dir=None)
    return [_house(graph, (c.get("containers") or ["commonweight"])[0], c["layers"]) for c in layers]


def _house(graph: grimp.ImportGraph, package: str, layers: Sequence[str]) -> House:
    floors = [[n.strip(" ()").split(".")[-1] for n in re.split("[|:]", layer)] for layer in layers]
    there = {m.rsplit(".", 1)[1] for m in graph.find_children(package)}
    if odd := there.symmetric_difference(n for floor in floors for n in floor):
        raise ValueError(f"{package}: {', '.join(sorted(odd))}: wanted a layer in pyproject.toml for each package")
    imports = {
        a: {
            b
            for b in there - {a}
            if graph.direct_import_exists(importer=f"{package}.{a}", imported=f"{package}.{b}", as_packages=True)
        }
        for a in there
    }
    return House(package, floors, imports, {n: _words(f"{package}.{n}") for n in there})


def _words(module: str) -> str:
    """The first words of its docstring, up to a full stop or a semicolon."""
    path = ROOT / "src" / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    said = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0]
    first = re.split(r"[.;](?:\s|$)", " ".join(said.split()))[0]
    if not first or len(first) > WORDS:
        raise ValueError(
            f"{module}: its docstring begins with {first!r}; wanted a sentence of at most {WORDS} characters"
        )
    return first


def reduced(imports: Imports) -> dict[str, set[str]]:
    """Without what follows from others: a imports c, where it imports b, and b in the end c."""

    def below(name: str) -> set[str]:
        return set().union(*({b} | below(b) for b in imports[name]))

    return {a: {c for c in found if not any(c in below(b) for b in found - {c})} for a, found in imports.items()}


# -- as a list --------------------------------------------------------------------------------------------------------


def listed(house: House) -> str:
    width = max(map(len, house.rows))
    return "\n".join(["```text", *(f"{n:{width}}  {house.words[n]}" for n in house.rows), "```"])


# -- as a picture -----------------------------------------------------------------------------------------------------

WIDTH, LEFT, NAME, ROW, GAP, LANE = 920, 150, 122, 31, 5, 15
STYLE = """
    .panel { fill: #fbfaf7; stroke: #d8d4c9; }
    .floor { fill: #ffffff; stroke: #c4bfb1; }
    .title { font-size: 18px; font-weight: 650; fill: #1d2a2c; }
    .name { font-size: 15px; font-weight: 600; fill: #1d2a2c; font-family: ui-monospace, Menlo, monospace; }
    .text { font-size: 14px; fill: #44534f; }
    .way { fill: none; stroke: currentColor; stroke-width: 1.8; }
    .head { fill: currentColor; }
    .c0 { color: #2a9d8f; } .c1 { color: #e08e45; } .c2 { color: #7a6fb0; }
    .c3 { color: #c2546b; } .c4 { color: #4a86b8; }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #1f2729; stroke: #3a4547; }
      .floor { fill: #273032; stroke: #4a5759; }
      .title, .name { fill: #e8efec; }
      .text { fill: #b4c0bb; }
    }"""
ABOUT = (
    "Each package stands above those that it imports. An arrow leads from a package to one that it imports; where a "
    "longer way leads there too, the direct arrow is left out."
)


def lanes(house: House) -> dict[str, int]:
    """Imported package -> the lane in which all arrows to it run: no two that meet share one, short ones lie inside."""
    at = {n: i for i, n in enumerate(house.rows)}
    spans = {b: [at[a] for a, found in reduced(house.imports).items() if b in found] for b in house.rows}
    out: dict[str, int] = {}
    for name in sorted((n for n in house.rows if spans[n]), key=lambda n: (at[n] - min(spans[n]), at[n])):
        taken = {lane for other, lane in out.items() if at[other] >= min(spans[name]) and min(spans[other]) <= at[name]}
        out[name] = next(i for i in range(len(at)) if i not in taken)
    return out


def panel(house: House, top: int) -> tuple[list[str], int]:
    """Its lines of SVG, and where it ends."""
    height = 52 + sum(len(f) * ROW + GAP for f in house.floors) + 8
    out = [
        f'<rect class="panel" x="1" y="{top}" width="{WIDTH - 2}" height="{height}" rx="10"/>',
        f'<text class="title" x="20" y="{top + 31}">{house.title}</text>',
    ]
    y, middle = top + 46, {}
    for floor in house.floors:
        box = f'x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 16}" height="{len(floor) * ROW}" rx="6"'
        out.append(f'<rect class="floor" {box}/>')
        for name in floor:
            middle[name] = y + ROW // 2
            out.append(f'<text class="name" x="{LEFT + 12}" y="{y + 21}">{name}</text>')
            out.append(f'<text class="text" x="{LEFT + NAME}" y="{y + 21}">{escape(house.words[name])}</text>')
            y += ROW
        y += GAP
    return [*out, *_arrows(house, middle)], top + height


def _arrows(house: House, middle: Mapping[str, int]) -> list[str]:
    out, ways = [], reduced(house.imports)
    for k, (name, lane) in enumerate(sorted(lanes(house).items(), key=lambda e: middle[e[0]])):
        x, end, colour = LEFT - 20 - lane * LANE, middle[name] - 5, k % 5
        for a in sorted((a for a in ways if name in ways[a]), key=lambda a: middle[a]):
            start = middle[a] + 5
            path = f"M{LEFT} {start}H{x + 6}q-6 0 -6 6V{end - 6}q0 6 6 6H{LEFT - 6}"
            out.append(f'<path class="way c{colour}" d="{path}"/>')
        out.append(f'<path class="head c{colour}" d="M{LEFT} {end}l-8 -4.5v9z"/>')
    return out


def picture(found: Sequence[House]) -> str:
    lines, y = [], 1
    for house in found:
        more, y = panel(house, y)
        lines, y = lines + more, y + 14
    body = "\n".join(f"  {line}" for line in lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - 12}" role="img" aria-labelledby="t d" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif\">\n"
        f'  <title id="t">The house</title>\n  <desc id="d">{ABOUT}</desc>\n'
        f"  <style>{STYLE}\n  </style>\n{body}\n</svg>\n"
    )


def pages() -> generated.Pages:
    found = houses()
    return {PICTURE: picture(found), **generated.parts(PAGE, {"layers": lambda: listed(found[0])})}


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
