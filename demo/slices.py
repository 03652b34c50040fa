"""Cuts the demo's data out of the full data sets, the same rows on every machine.

    python demo/slices.py SOURCE [TARGET]

SOURCE holds ``<task>.<train|dev|test>.tsv`` with one ``label, tab, text`` a line; TARGET is ``demo/data`` unless
given. Which rows: those with the smallest BLAKE2b hash of "seed/file/line number", in the order of the source. The
choice looks at no label, so that a slice keeps the natural distribution, and it depends on no random generator.
"""

from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path

TASKS = ("trec", "sst2", "sst5", "mr", "cr")
ROWS = {"train": 1000, "dev": 200, "test": 500}
SEED = 0


def choose(name: str, total: int, rows: int, seed: int = SEED) -> list[int]:
    """`rows` of the line numbers below `total` (all of them when there are fewer), in ascending order."""

    def draw(line: int) -> bytes:
        return blake2b(f"{seed}/{name}/{line}".encode(), digest_size=8).digest()

    return sorted(sorted(range(total), key=draw)[:rows])


def cut(source: Path, target: Path) -> None:
    """Writes every slice from `source` to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for split, rows in ROWS.items():
            name = f"{task}.{split}.tsv"
            # Only "\n" ends a line: str.splitlines would also cut at U+0085, which stands inside some reviews.
            lines = (source / name).read_bytes().removesuffix(b"\n").split(b"\n")
            kept = [lines[i] for i in choose(name, len(lines), rows)]
            (target / name).write_bytes(b"\n".join(kept) + b"\n")


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2 or not Path(arguments[0]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    target = Path(arguments[1]) if len(arguments) > 1 else Path(__file__).parent / "data"
    cut(Path(arguments[0]), target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
