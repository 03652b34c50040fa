"""One QLoRA training step (forward, backward, AdamW) on a 4-bit base: our LoRA against PEFT's, time and peak memory.

python -m benchmarks.qlora                      all
python -m benchmarks.qlora SIDE BASE DTYPE      one side's peak of memory, as JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from typing import Any

import torch

import commonweight as cw

from .harness import DEVICE, alternate, in_fresh_process, peak, store
from .shapes import BASES, TARGETS, batch, loss, minilm_folder

ROWS, LENGTH, ROUNDS = 16, 64, 5
DTYPES = "float32", "bfloat16"  # of the activations


def base(name: str, dtype: str) -> Any:
    """The model in nf4, as users load it."""
    from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

    wanted = getattr(torch, dtype)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=wanted)
    like: dict[str, Any] = {"quantization_config": how, "dtype": wanted, "device_map": DEVICE.type}
    if name == "minilm":
        return AutoModel.from_pretrained(minilm_folder(), add_pooling_layer=False, **like)
    with tempfile.TemporaryDirectory() as folder:
        BASES[name]().save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, **like)


def ours(name: str, dtype: str):
    model = base(name, dtype).train()
    host = cw.Host(model)
    tenant = host.add("t", "lora", rank=8)
    optimiser = torch.optim.AdamW(tenant.parameters(), lr=1e-4)
    data = batch(name, ROWS, LENGTH)

    def step() -> None:
        with host.route("t"):
            loss(model(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def peft(name: str, dtype: str):
    from peft import LoraConfig, get_peft_model

    targets = r"encoder\..*(query|key|value|dense)" if name == "minilm" else TARGETS[name]
    model = get_peft_model(base(name, dtype), LoraConfig(r=8, lora_alpha=16, target_modules=targets)).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    data = batch(name, ROWS, LENGTH)

    def step() -> None:
        loss(model(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


SIDES = {"ours": ours, "peft": peft}


def main(rounds: int = 9) -> list[dict]:
    rows = []
    for name in BASES:
        for dtype in DTYPES:
            what = f"ours / peft, {name} in nf4, {dtype}, {ROWS}x{LENGTH}"
            timed = alternate(ours(name, dtype), peft(name, dtype), rounds)
            rows.append({"what": f"QLoRA step, {what}", "unit": "time", "target": 0.95, **timed})
            pairs = [
                [in_fresh_process("benchmarks.qlora", s, name, dtype)["peak_mb"] for s in SIDES] for _ in range(ROUNDS)
            ]
            ratios = sorted(a / b for a, b in pairs)
            rows.append(
                {
                    "what": f"QLoRA peak memory, {what}",
                    "unit": "memory",
                    "target": 0.95,
                    "ours_mb": pairs[0][0],
                    "theirs_mb": pairs[0][1],
                    "ratio": round(ratios[ROUNDS // 2], 3),
                    "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
                    "rounds": ROUNDS,
                }
            )
    store("qlora", rows)
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:]:
        side, *what = sys.argv[1:]
        (step := SIDES[side](*what))()  # bitsandbytes and AdamW make their state
        print(json.dumps(peak(step)))
    else:
        for row in main():
            print(row)
