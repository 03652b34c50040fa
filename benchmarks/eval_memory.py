"""Peak memory of measuring rows of a language model beside that of a training step on as many rows, LoRA r 8.

Three sides, each in processes of its own, three times: `train` (steps of ROWS rows), `eval` (the same rows measured, as
many at a time) and `whole` (logits of all positions and their copy in float32, as a plain forward pass has them).

python -m benchmarks.eval_memory [MODEL]         all; MODEL: a causal language model's folder; without it one of the
                                                 shape of SmolLM2-135M with random weights
python -m benchmarks.eval_memory SIDE MODEL      one side, as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from commonweight import Host
from commonweight.adapt.tasks import scored

from .harness import in_fresh_process, store
from .training_memory import kilobytes

ROWS, LENGTH, ROUNDS = 4, 512, 3
SIDES = ("train", "eval", "whole")


def model(folder: str) -> torch.nn.Module:
    if folder != "random":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16)


def peak(side: str, folder: str) -> None:
    host = Host(model(folder).eval())
    tenant = host.add("t", "lora")
    ids = torch.randint(5, 4000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    optimizer = torch.optim.AdamW(tenant.parameters(), lr=1e-3)

    def train() -> None:
        with host.route("t"):
            (scored.loss(host.model, inputs, ids) / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def measure() -> None:
        with host.route("t"):
            scored.measure(host.model, inputs, ids)

    @torch.no_grad()
    def whole() -> None:
        with host.route("t"):
            logits = host.model(**inputs, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")

    step = {"train": train, "eval": measure, "whole": whole}[side]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, after loading
    before = kilobytes("VmRSS")
    for _ in range(2):
        step()
    high = kilobytes("VmHWM")
    print(json.dumps({"peak_mb": round(high / 1024, 1), "steps_mb": round((high - before) / 1024, 1)}))


def main(folder: str = "random") -> list[dict]:
    found = [{s: in_fresh_process("benchmarks.eval_memory", s, folder) for s in SIDES} for _ in range(ROUNDS)]
    rows = []
    for other, target in (("train", 1.0), ("whole", 1.0)):
        ratios = sorted(f["eval"]["steps_mb"] / f[other]["steps_mb"] for f in found)
        rows.append(
            {
                "what": f"memory of measuring / {other}, {ROWS}x{LENGTH} tokens, SmolLM2-135M's shape",
                "unit": "memory",
                "target": target,
                "model": Path(folder).name,
                "ours_mb": found[0]["eval"],
                "theirs_mb": found[0][other],
                "ratio": round(ratios[ROUNDS // 2], 3),
                "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
                "rounds": ROUNDS,
            }
        )
    store("eval_memory", rows)
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 2:
        peak(*sys.argv[1:])
    else:
        for row in main(*sys.argv[1:]):
            print(row)
