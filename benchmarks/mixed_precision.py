"""A training step of a whole model in float32, as `share.heal` makes it: with --bf16 against without.

python -m benchmarks.mixed_precision
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from .harness import alternate, store
from .shapes import batch, llama, loss

ROWS, LENGTH = 4, 256


def side(bf16: bool) -> Callable[[], None]:
    model = llama().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = batch("llama-8x512", ROWS, LENGTH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            value = loss(model(**data))
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def main(rounds: int = 15) -> list[dict]:
    timed = alternate(side(True), side(False), rounds)
    what = f"training step of a whole model, --bf16 / float32, llama-8x512, {ROWS}x{LENGTH}"
    rows = [{"what": what, "unit": "time", "target": None, **timed}]
    store("mixed_precision", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
