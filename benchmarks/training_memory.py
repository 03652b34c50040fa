"""Peak resident memory over three training steps, model and all: each side in processes of its own, five times.

python -m benchmarks.training_memory             all
python -m benchmarks.training_memory SIDE BASE   one side, as JSON
"""

from __future__ import annotations

import json
import sys

from .harness import compared, in_fresh_process, peak, store
from .shapes import BASES
from .training_step import LENGTH, ROWS, SIDES

ROUNDS = 5
WANTED = {"minilm": 1.0, "llama-8x512": 0.88}  # of its memory


def main() -> list[dict]:
    rows = []
    for base in BASES:
        found = [{s: in_fresh_process("benchmarks.training_memory", s, base) for s in SIDES} for _ in range(ROUNDS)]
        for a, b, target in (("ours", "peft", WANTED.get(base)), ("mos", "ours", 1.05)):
            what = f"peak memory of training, {a} / {b}, {base}, {ROWS}x{LENGTH}"
            ours, theirs = ([f[s]["peak_mb"] for f in found] for s in (a, b))
            more = {"ours_mb": found[0][a], "theirs_mb": found[0][b]}
            rows.append(compared(what, "memory", target, ours, theirs, **more))
    store("training_memory", rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:]:
        side, base = sys.argv[1:]
        print(json.dumps(peak(SIDES[side](base))))
    else:
        for row in main():
            print(row)
