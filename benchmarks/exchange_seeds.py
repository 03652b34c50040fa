"""Methods of seeds and scalars: random numbers per second beside torch.randn, a MeZO step's memory beside a forward's.

python -m benchmarks.exchange_seeds              all
python -m benchmarks.exchange_seeds SIDE BASE    one side's peak of memory, as JSON
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings

import torch

from commonweight.core.directions import blocks, move_
from commonweight.exchange.moving import mezo_step

from .harness import alternate, in_fresh_process, peak, store
from .shapes import BASES, batch, loss

ROUNDS, NUMBERS = 3, 1 << 22
SHAPES = {"minilm": (32, 128), "llama-8x512": (16, 128)}


def side(base: str):
    model = BASES[base]().eval()
    for p in model.parameters():
        p.data = p.data.clone()  # all of it in memory: of a file that is mapped, what no forward reads is not
    rows, length = SHAPES[base]
    data = batch(base, rows, length)
    return (lambda: loss(model(**data))), model


def one(name: str, base: str) -> None:
    forward, model = side(base)
    with torch.no_grad():
        forward()
        seeds = itertools.count()
        print(json.dumps(peak(lambda: mezo_step(model, forward, next(seeds)) if name == "mezo" else forward())))


def memory() -> list[dict]:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # or what was freed stays with the process, now on one side, now
    out = []  # on the other
    for base in ("minilm", "llama-8x512"):
        found = [
            {s: in_fresh_process("benchmarks.exchange_seeds", s, base) for s in ("mezo", "forward")}
            for _ in range(ROUNDS)
        ]
        ratios = sorted(f["mezo"]["peak_mb"] / f["forward"]["peak_mb"] for f in found)
        out.append({
            "what": f"peak memory, a MeZO step / the model's forward alone, {base}, {'x'.join(map(str, SHAPES[base]))}",
            "unit": "memory", "target": 1.05, "ours_mb": found[0]["mezo"], "theirs_mb": found[0]["forward"],
            "ratio": round(ratios[ROUNDS // 2], 3), "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
            "rounds": ROUNDS,
        })  # fmt: skip
    return out


def numbers() -> list[dict]:
    """torch.randn into a tensor that is there already, which is its fastest form."""
    into, value = torch.empty(NUMBERS), torch.zeros(NUMBERS)
    out = []

    def make() -> None:
        for _ in blocks(1, "x", NUMBERS):
            pass

    def randn() -> None:
        torch.randn(NUMBERS, out=into)

    def rebuild() -> None:
        move_(value, "x", [(1, 1e-3)])

    def add() -> None:
        torch.randn(NUMBERS, out=into)
        value.add_(into, alpha=1e-3)

    for what, ours, theirs in (
        ("seeded normal numbers per second / torch.randn", make, randn),
        ("a model rebuilt from scalars, numbers per second / torch.randn and add_", rebuild, add),
    ):
        found = alternate(ours, theirs, rounds=15)
        # of times; of speeds it is the inverse
        low, high = found["spread"]
        speed = {"ratio": round(1 / found["ratio"], 3), "spread": [round(1 / high, 3), round(1 / low, 3)]}
        millions = {f"{k}_millions": round(NUMBERS / found[f"{k}_ms"] / 1e3) for k in ("ours", "theirs")}
        what = f"{what}, {torch.get_num_threads()} threads"
        out.append({"what": what, "unit": "of its speed", "target": 0.8, **found, **speed, **millions})
    return out


def main() -> list[dict]:
    rows = [*numbers(), *memory()]
    store("exchange_seeds", rows)
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:]:
        one(*sys.argv[1:])
    else:
        for row in main():
            print(row)
