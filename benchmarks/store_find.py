"""Tenants found by a text: seconds warm over 10,000 tenants, and how often the right one is among the first five.

A tenant's task is a passage of a book: it is described by some of its sentences, and asked for by one of the others. So
there are as many tasks as passages, and neighbours among them speak of the same things.

    python -m benchmarks.store_find ENCODER BOOK.txt [BOOK.txt ...]
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from pathlib import Path

import torch

import commonweight as cw
from commonweight.commons import Commons, Descriptions, descriptions
from commonweight.report.statistics import interval

from .harness import store
from .shapes import minilm
from .store import TENANTS, fill, seconds

EACH, ASKED = 3, 500  # sentences that describe a tenant; requests


def passages(files: list[str]) -> list[list[str]]:
    """Runs of four sentences each, at random places."""
    found = []
    for file in files:
        text = re.sub(r"\s+", " ", Path(file).read_text(encoding="utf-8"))
        lines = [s.strip() for s in re.split(r"(?<=[.!?])\s", text) if 40 <= len(s.strip()) <= 300]
        found += [lines[i : i + EACH + 1] for i in range(0, len(lines) - EACH, EACH + 1)]
    random.Random(0).shuffle(found)
    return found[:TENANTS]


def main(encoder: str, files: list[str]) -> list[dict]:
    encode, rows = descriptions.encoder(encoder), passages(files)
    n = len(rows)
    texts = [t for row in rows for t in row[:EACH]]
    vectors = torch.nn.functional.normalize(encode(texts).view(n, EACH, -1).mean(1), dim=-1)
    with tempfile.TemporaryDirectory() as tmp:
        host = cw.Host(minilm())
        host.add("legal", "lora-xs", rank=16, factors="common", common="tasks")
        c = Commons(Path(tmp) / "store")
        fill(c, c.publish_file(host.save("legal", Path(tmp) / "legal.safetensors", codec="int8")))
        names = tuple(f"tenant-{i:05}" for i in range(n))
        described = Descriptions(names, vectors.half(), encoder)
        asked = range(0, n, max(1, n // ASKED))
        hits = {k: 0 for k in (1, 5)}
        for i, v in zip(asked, encode([rows[i][EACH] for i in asked])):
            found = [f.name for f in descriptions.find(described, v, 5)]
            for k in hits:
                hits[k] += names[i] in found[:k]
        again = lambda: descriptions.find(described, encode([rows[0][EACH]])[0], 5, c.newest())  # noqa: E731
        again()
        took = seconds(again, 15)
    return told(n, len(asked), hits, took)


def told(n: int, asked: int, hits: dict[int, int], took: dict) -> list[dict]:
    """The rows of benchmarks/results; what was asked for {k: times that it was among the first k}."""
    out = [{"what": f"store find among {n:,} tenants, warm", "unit": "s", "target": None, **took}]
    for k, right in hits.items():
        low, high = interval(right, asked)
        what = f"store find, recall@{k}: one of {n:,} passages of books, told by {EACH} sentences, by the next one"
        more = {"share": round(right / asked, 3), "spread": [round(low, 3), round(high, 3)], "requests": asked}
        out.append({"what": what, "unit": "recall", "target": None, **more})
    return out


if __name__ == "__main__":
    found = main(sys.argv[1], sys.argv[2:])
    store("store_find", found)
    for row in found:
        print(row)
