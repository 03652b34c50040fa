"""One training step (forward, backward, AdamW): our LoRA against PEFT's, our MoS against our LoRA.

python -m benchmarks.training_step
"""

from __future__ import annotations

import torch

import commonweight as cw

from .harness import alternate, store
from .shapes import BASES, TARGETS, batch, loss

ROWS, LENGTH = 16, 64
WANTED = {"minilm": 1.0, "llama-8x512": 0.85}  # of its time
MOS = {"rank": 8, "budget": 2, "private": 1, "shards": 4}


def ours(base: str, method: str, length: int = LENGTH, **options):
    model = BASES[base]().train()
    host = cw.Host(model)
    tenant = host.add("t", method, **options)
    optimiser = torch.optim.AdamW(tenant.parameters(), lr=1e-4)
    data = batch(base, ROWS, length)

    def step() -> None:
        with host.route("t"):
            loss(model(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def peft(base: str):
    from peft import LoraConfig, get_peft_model

    targets = TARGETS[base]
    if base == "minilm":
        targets = r"encoder\..*(query|key|value|dense)"
    model = get_peft_model(BASES[base](), LoraConfig(r=8, lora_alpha=16, target_modules=targets)).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    data = batch(base, ROWS, LENGTH)

    def step() -> None:
        loss(model(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


SIDES = {
    "ours": lambda base: ours(base, "lora", rank=8),
    "mos": lambda base: ours(base, "mos", **MOS),
    "peft": peft,
}


def main(rounds: int = 15) -> list[dict]:
    rows = []
    for base in BASES:
        sides = {name: make(base) for name, make in SIDES.items()}
        for a, b, target in (("ours", "peft", WANTED.get(base)), ("mos", "ours", 1.05)):
            timed = alternate(sides[a], sides[b], rounds)
            rows.append(
                {
                    "what": f"training step, {a} / {b}, {base}, {ROWS}x{LENGTH}",
                    "unit": "time",
                    "target": target,
                    **timed,
                }
            )
    store("training_step", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
