"""What two training steps take beyond the loaded model, a network beside it or LoRA r8 in it: the peak of resident
memory, each side in processes of its own, three times.

python -m benchmarks.side_memory             all
python -m benchmarks.side_memory SIDE BASE   one side, as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .harness import compared, in_fresh_process, store
from .shapes import BASES
from .training_memory import kilobytes
from .training_step import ours

ROUNDS, LENGTH, WANTED = 3, 64, 0.5
SIDES = {"lora": {"rank": 8}, "lst": {}, "sherl": {}, "read": {}, "vqt": {}}


def peak(side: str, base: str) -> None:
    step = ours(base, side, length=LENGTH, **SIDES[side])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, after loading
    before = kilobytes("VmRSS")
    for _ in range(2):
        step()
    high = kilobytes("VmHWM")
    print(json.dumps({"peak_mb": round(high / 1024, 1), "steps_mb": round((high - before) / 1024, 1)}))


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
        peak(*sys.argv[1:])
    else:
        for row in main():
            print(row)
