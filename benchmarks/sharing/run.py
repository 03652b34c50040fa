"""One cell: a model made smaller, its learning rate chosen on held-out rows, healed, measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from commonweight import CommonweightError
from commonweight.builder import Anatomy, anatomy
from commonweight.share import heal, share
from commonweight.share.cost import original

from .bases import Base
from .fit import bytes_of, fitted
from .rivals import from_nothing, quantised

TARGETS = (1 / 2, 1 / 3)
BITS = {1 / 2: (7,), 1 / 3: (5, 4)}  # whose bytes come nearest; with the numbers of a group 7.5, 5.5 and 4.5 bits
SEEDS = (0, 1, 2)
FIRST = ("drop", "recursive")  # what the others are compared with is measured first


class Cell(NamedTuple):
    """kind: "share" | "nothing" (a smaller model from random numbers) | "bits". share: of the blocks' bytes."""

    base: str
    target: float
    kind: str
    name: str
    options: dict[str, Any]
    share: float
    seed: int

    @property
    def key(self) -> str:
        told = " ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.base} 1/{round(1 / self.target)} {self.name} {told} seed {self.seed}".replace("  ", " ")


def cells(base: Base, model: Any) -> Iterator[Cell]:
    """Every cell of a base: the first seed of all before the second."""
    about = anatomy(model)
    whole = original(about).nbytes
    for seed in SEEDS:
        for target in TARGETS:
            if seed == 0:
                for bits in BITS[target]:
                    part = quantised(model, about, bits)[1]
                    yield Cell(base.name, target, "bits", f"{bits} bits", {}, part, seed)
            found = sorted(fitted(about, target), key=lambda f: (f.method not in FIRST, f.method))
            for f in found:
                yield Cell(base.name, target, "share", f.method, f.options, f.bytes / whole, seed)
            layers = max(1, round(about.depth * target))
            size = bytes_of(about, "drop", {"keep": layers})
            assert size is not None
            yield Cell(base.name, target, "nothing", "from nothing", {"layers": layers}, size / whole, seed)


def made(cell: Cell, model: Any, about: Anatomy, rows: list[Any]) -> Any:
    if cell.kind == "bits":
        return quantised(model, about, int(cell.name.split()[0]))[0]
    if cell.kind == "nothing":
        return from_nothing(model, about, cell.options["layers"], cell.seed)
    return share(model, cell.name, rows=rows[:8], **cell.options)


def measured(cell: Cell, base: Base, model: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """The cell's figures: before healing, after it, and the tries that chose its learning rate."""
    started, about, rows = time.process_time(), anatomy(model), base.rows()
    dev, train = rows[:24], rows[24:]
    small = made(cell, model, about, rows)
    out: dict[str, Any] = {**cell._asdict(), "unhealed": base.figures(small)}
    if cell.kind != "bits":
        tries = {rate: tried(small, cell, base, model, train, dev, rate, base.trial) for rate in base.rates}
        rate = min(tries, key=lambda r: tries[r][1])
        say(f"{cell.key}: dev {', '.join(f'{r:g}: {t[1]:.3f}' for r, t in tries.items())}")
        small, loss = tried(small, cell, base, model, train, dev, rate, base.tokens)
        out |= {"tries": {f"{r:g}": round(t[1], 4) for r, t in tries.items()}, "lr": rate, "tokens": base.tokens}
        out["healed"] = {**base.figures(small), "loss": round(loss, 4)}
    return {**out, "cpu_s": round(time.process_time() - started)}


def tried(
    fresh: Any, cell: Cell, base: Base, model: Any, rows: list[Any], dev: list[Any], rate: float, tokens: int
) -> tuple[Any, float]:
    """(a healed copy of the fresh one, its loss on the dev rows); infinity where it diverged."""
    small = copy.deepcopy(fresh)
    how = {"lr": rate, "bf16": True, "seed": cell.seed, "dev_rows": dev, "eval_batch_size": 8, **base.recipe}
    try:
        done = heal(small, teacher=model, rows=rows, tokens=tokens, **how)
    except CommonweightError:
        return small, float("inf")
    torch.manual_seed(cell.seed)
    return small, done.metrics["loss"]
