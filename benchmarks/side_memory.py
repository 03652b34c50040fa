"""What two training steps take beyond the loaded model, a network beside it or LoRA r8 in it: the peak of resident
memory, each side in processes of its own, three times.

python -m benchmarks.side_memory             all
python -m benchmarks.side_memory SIDE BASE   one side, as JSON
"""

from __future__ import annotations

import json
import sys

from .harness import compared, in_fresh_process, peak, store
from .shapes import BASES
from .training_step import ours

ROUNDS, LENGTH, WANTED = 3, 64, 0.5
SIDES = {"lora": {"rank": 8}, "lst": {}, "sherl": {}, "read": {}, "vqt": {}}


def main() -> list[dict]:
    rows = []
    for base in BASES:
        found = [{s: in_fresh_process("benchmarks.side_memory", s, base) for s in SIDES} for _ in range(ROUNDS)]
        for side in [s for s in SIDES if s != "lora"]:
            what = f"memory of training beyond the loaded model, {side} / lora r8, {base}, 16x{LENGTH}"
            ours, theirs = ([f[s]["steps_mb"] for f in found] for s in (side, "lora"))
            more = {"ours_mb": found[0][side], "theirs_mb": found[0]["lora"]}
            rows.append(compared(what, "memory", WANTED, ours, theirs, **more))
    store("side_memory", rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:]:
        side, base = sys.argv[1:]
        print(json.dumps(peak(ours(base, side, length=LENGTH, **SIDES[side]), 2)))
    else:
        for row in main():
            print(row)
