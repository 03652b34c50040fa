"""Bytes of a one-bit tenant's file over those of the same tenant in float32: MiniLM, and the width of a ViT-B.

python -m benchmarks.one_bit
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import commonweight as cw

from .harness import store
from .shapes import minilm

TARGET = "1/28"


def vit_width() -> Any:
    """Query and value of twelve blocks of width 768."""
    names = [f"{kind}_{i}" for i in range(12) for kind in ("query", "value")]
    return torch.nn.ModuleDict({n: torch.nn.Linear(768, 768) for n in names})


def ratio(model: Any, sites: str | None) -> float:
    """Packed file over float32 file, heads left out."""
    host = cw.Host(model)
    with tempfile.TemporaryDirectory() as tmp:
        host.add("t", "bi-lora", sites=sites)
        whole = host.save("t", Path(tmp) / "whole.safetensors").stat().st_size
        host.compact("t")
        packed = host.save("t", Path(tmp) / "packed.safetensors", codec="onebit").stat().st_size
    return packed / whole


def main() -> list[dict]:
    found = sorted((ratio(minilm(), None), ratio(vit_width(), "*")))
    row = {
        "what": "a one-bit tenant's file (bi-lora r32, codec onebit) / in float32, MiniLM and the width of ViT-B",
        "unit": "file",
        "target": "1/28",
        "met": found[-1] <= 1 / 28,
        "ratio": round(found[-1], 4),
        "spread": [round(f, 4) for f in found],
    }
    store("one_bit", [row])
    return [row]


if __name__ == "__main__":
    for row in main():
        print(row)
