"""Cuts the rows of the chat tenants out of books and word problems, the same on every machine.

    python demo/chats/slices.py SOURCE [TARGET]

SOURCE holds `books/<book>.txt` (public domain) and `gsm8k/train.jsonl` (MIT licence, openai/grade-school-math); TARGET
is `demo/chats/data` unless given. A row is {"user": ..., "assistant": ...}. The sentence tasks' rows are those of
`demo/data`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

BOOKS = {
    "austen": "austen_emma",
    "carroll": "carroll_alice",
    "doyle": "doyle_sherlock_holmes",
    "melville": "melville_moby_dick",
}
MOST = 240  # rows of each
Row = dict[str, str]


def paragraphs(text: str) -> list[str]:
    """Of prose, each on one line."""
    found = (re.sub(r"\s+", " ", p).replace("_", "").strip() for p in re.split(r"\n\s*\n", text))
    return [p for p in found if len(p) > 60 and not p.isupper()]


def prose(text: str) -> Iterator[Row]:
    """A sentence, and what the author says next: up to three sentences, 240 characters."""
    for p in paragraphs(text):
        said = re.findall(r"[^.!?]+[.!?]+[\u201d\"\u2019')]*\s*", p)
        for i in range(0, len(said) - 1, 3):
            first, rest = said[i].strip(), ""
            for sentence in said[i + 1 : i + 4]:
                rest = rest + sentence if len(rest + sentence) <= 240 else rest
            if 20 < len(first) < 160 and len(rest) > 40:
                yield {"user": first, "assistant": rest.strip()}


def plays(text: str) -> Iterator[Row]:
    """A speech in one line, and the next speaker's verse with its line breaks."""
    speeches = re.findall(r"^([A-Z][A-Za-z ]{2,24}):\n((?:.+\n)+)", text, re.MULTILINE)
    for (_, before), (who, verse) in pairwise(speeches):
        first, lines = " ".join(before.split()), verse.strip().split("\n")[:4]
        if 15 < len(first) < 160 and len(lines) > 1:
            yield {"user": first, "assistant": f"{who.upper()}:\n" + "\n".join(lines)}


def dictionary(text: str) -> Iterator[Row]:
    """A word, and what the devil's dictionary says of it, without its verses."""
    entries = re.findall(r"^([A-Z]{3,16}), ((?:n|v\.t|v\.i|adj|adv)\.)\s+((?:.+\n)+)", text, re.MULTILINE)
    for word, kind, told in entries:
        told = re.sub(r"\s+", " ", told).replace("_", "").strip()
        if 20 < len(told) < 260:
            yield {"user": word.capitalize(), "assistant": f"{word}, {kind} {told}"}


def problems(lines: str) -> Iterator[Row]:
    """Short word problems with their worked answers."""
    for line in lines.splitlines():
        row = json.loads(line)
        if len(row["question"]) < 220 and len(row["answer"]) < 200:
            yield {"user": row["question"], "assistant": re.sub(r"<<.*?>>", "", row["answer"])}


def spread(rows: list[Row]) -> list[Row]:
    """Evenly over the whole."""
    return [rows[i * len(rows) // MOST] for i in range(MOST)] if len(rows) > MOST else rows


def main(source: Path, target: Path) -> None:
    books = source / "books"
    made = {name: prose((books / f"{book}.txt").read_text("utf-8")) for name, book in BOOKS.items()}
    made["shakespeare"] = plays((books / "shakespeare_plays.txt").read_text("utf-8"))
    made["bierce"] = dictionary((books / "bierce_devils_dictionary.txt").read_text("utf-8"))
    made["sums"] = problems((source / "gsm8k" / "train.jsonl").read_text("utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        found = spread(list(rows))
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found)
        (target / f"{name}.jsonl").write_text(text, "utf-8")
        print(f"{name}: {len(found)} rows, {len(text)} characters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "data")
