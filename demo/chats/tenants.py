"""The dozen: what each tenant learns, from which rows, by which method. Each file is a few kilobytes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILES = HERE / "tenants"
Row = dict[str, Any]

LABELS = {
    "trec": ("It asks for a description.", "It asks for a thing.", "It asks for an abbreviation.",
        "It asks for a person.", "It asks for a place.", "It asks for a number."),
    "sst2": ("Negative.", "Positive."),
    "sst5": ("1 star of 5", "2 stars of 5", "3 stars of 5", "4 stars of 5", "5 stars of 5"),
    "mr": ("Thumbs down.", "Thumbs up."),
    "cr": ("The customer is not happy.", "The customer is happy."),
}  # fmt: skip
MIDDLE = "*.layers.1?.*v_proj|*.layers.1?.*o_proj|*.layers.1?.*down_proj"


@dataclass(frozen=True)
class Tenant:
    """name: also of its rows. what: for people. lr, epochs, rows: of its training."""

    name: str
    what: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    sites: str | None = None
    lr: float = 0.01
    epochs: int = 2
    rows: int = 208


def _reft(rank: int) -> dict[str, Any]:
    return {"rank": rank, "layers": (6, 12, 18, 24)}


DOZEN = (
    Tenant("bierce", "defines it as the Devil's Dictionary does", "loreft", _reft(2)),
    Tenant("trec", "says what a question asks for", "lora-xs", {"rank": 12}, MIDDLE),
    Tenant("shakespeare", "answers as a character of his plays", "loreft", _reft(4)),
    Tenant("sst2", "says whether a review is positive", "ia3", {}, MIDDLE, lr=0.02),
    Tenant("sums", "works a problem out, step by step", "loreft", _reft(4), lr=0.02, epochs=1, rows=144),
    Tenant("melville", "goes on as in Moby Dick", "uni-lora", {"dim": 4096}, MIDDLE, lr=0.02, epochs=1, rows=144),
    Tenant("sst5", "gives a review's stars", "uni-lora", {"dim": 8192}, MIDDLE, lr=0.05),
    Tenant("cr", "says whether a customer is happy", "lora-xs", {"rank": 12}, MIDDLE, lr=0.02, epochs=1, rows=144),
    Tenant("carroll", "goes on as in Alice in Wonderland", "ia3", {}, MIDDLE, lr=0.02, epochs=1, rows=144),
    Tenant("mr", "puts a thumb up or down", "lora-xs", {"rank": 12}, MIDDLE, lr=0.02, epochs=1, rows=144),
    Tenant("austen", "goes on as in Emma", "loreft", _reft(2), lr=0.02, epochs=1, rows=144),
    Tenant("doyle", "goes on as Dr Watson tells it", "lora-xs", {"rank": 16}, MIDDLE, lr=0.02, epochs=1, rows=144),
)


def pairs(name: str) -> list[tuple[str, str]]:
    """(what is said, what is answered)."""
    if name in LABELS:
        lines = (HERE.parent / "data" / f"{name}.train.tsv").read_text("utf-8").split("\n")
        cut = (line.split("\t", 1) for line in lines if line)
        return [(plain(text), LABELS[name][int(label)]) for label, text in cut]
    lines = (HERE / "data" / f"{name}.jsonl").read_text("utf-8").split("\n")
    rows = (json.loads(line) for line in lines if line)
    return [(r["user"], r["assistant"]) for r in rows]


def chats(name: str) -> list[Row]:
    return [
        {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]}
        for said, answer in pairs(name)
    ]


def plain(text: str) -> str:
    """The data sets' words, as people write them."""
    text = re.sub(r" ([.,;:?!%]|n't|'\w{1,2})(?= |$)", r"\1", text).replace("`` ", '"').replace(" ''", '"')
    return text[:1].upper() + text[1:]
