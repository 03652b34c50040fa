"""Bytes of a tenant's file over the bytes of its saved pools, every method, MiniLM; beside PEFT's files.

PEFT's column: its adapter_model.safetensors over the bytes of its trainable parameters, at its defaults.

    python -m benchmarks.file_size
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import commonweight as cw

from .harness import store
from .shapes import minilm

PEFT = {
    "lora": ("LoraConfig", {"r": 8}),
    "dora": ("LoraConfig", {"r": 8, "use_dora": True}),
    "vera": ("VeraConfig", {"r": 256, "save_projection": True}),
    "randlora": ("RandLoraConfig", {"r": 32, "save_projection": True}),
    "vb-lora": ("VBLoRAConfig", {"r": 4, "vector_length": 128, "num_vectors": 256}),
    "ia3": ("IA3Config", {"feedforward_modules": r".*output\.dense"}),
    "road": ("RoadConfig", {}),
    "oft": ("OFTConfig", {"oft_block_size": 32}),
}
OPTIONS = {"vera": {"rank": 256}, "vb-lora": {"vector_length": 128}}
LIMIT = "1.02 * pools + 8 KiB"


def peft_ratio(method: str, folder: Path) -> float | None:
    import peft

    if method not in PEFT:
        return None
    name, options = PEFT[method]
    targets = r".*(query|key|value|attention\.output\.dense|intermediate\.dense|output\.dense)"
    if method == "ia3":
        targets = r".*(key|value|\d\.output\.dense)"
    model = peft.get_peft_model(minilm(), getattr(peft, name)(target_modules=targets, **options))
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    model.save_pretrained(folder)
    return (folder / "adapter_model.safetensors").stat().st_size / trained


def main() -> list[dict]:
    rows = []
    host = cw.Host(minilm())
    with tempfile.TemporaryDirectory() as tmp:
        for method in cw.methods.available():
            tenant = host.add("t", method, **OPTIONS.get(method, {}))
            size = host.save("t", Path(tmp) / "t.safetensors").stat().st_size
            theirs = peft_ratio(method, Path(tmp) / method)
            rows.append(
                {
                    "what": f"file over pools, {method}",
                    "unit": "bytes",
                    "target": LIMIT,
                    "file": size,
                    "pools": tenant.nbytes,
                    "met": size <= 1.02 * tenant.nbytes + 8192,
                    "ratio": round(size / max(tenant.nbytes, 1), 3),
                    "peft_ratio": theirs and round(theirs, 2),
                }
            )
            host.remove("t")
    store("file_size", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
