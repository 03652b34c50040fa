"""Memory of 10,000 resident tenants of one common, against the numbers of as many LoRA r16 (computed, float32).

Measured on 1,500 of them: each one more takes as much.
Ours is what the process grew by in all, Python's objects included: MoS, whose tenants own which shards they read.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import commonweight as cw

from ..harness import in_fresh_process
from ..shapes import llama

TENANTS, MEASURED = 10_000, 1500


def resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def grown(tenants: int) -> dict[str, Any]:
    host = cw.Host(llama().eval())
    other = cw.Host(llama().eval())
    lora = other.add("lora", "lora", rank=16)
    bytes_of_lora = sum(p.numel() * 4 for p in lora.parameters())
    host.add("first", "mos", common="pools")
    before = resident()
    for i in range(tenants):
        host.add(f"t{i}", "mos", common="pools", seed=i)
    return {"tenants": tenants, "grown": resident() - before, "lora": bytes_of_lora * tenants}


def main(seconds: float, **_: Any) -> list[dict[str, Any]]:
    found = in_fresh_process("benchmarks.serving.resident", str(MEASURED))
    ratio = round(found["grown"] / found["lora"], 4)
    what = f"serving, memory of {TENANTS:,} resident MoS tenants of one common / LoRA r16 (computed), llama-8x512"
    return [{"what": what, "unit": "memory", "target": 0.01, "ratio": ratio, "spread": [ratio, ratio], **found}]


if __name__ == "__main__":
    print(json.dumps(grown(int(sys.argv[1]))))
