"""How far an exchange is: a bar where there is a terminal, a line at times where there is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import progress

if TYPE_CHECKING:
    from ..exchange import Progress


class Bar(progress.Bar):
    """Progress on stderr, in rounds."""

    def __call__(self, p: Any) -> None:
        if self.row is None:
            self.row = self.bar.add_task("rounds", total=p.rounds, told="")
            self.started = time.monotonic() - p.seconds
        self.bar.update(self.row, completed=p.round, told=facts(p, self.left(p)))
        now = time.monotonic()
        if not self.console.is_terminal and (p.round == p.rounds or now - self.last >= progress.LEAST):
            self.last = now
            self.say(f"round {p.round}/{p.rounds}: {facts(p, self.left(p))}")

    def left(self, p: Progress) -> float:
        return p.seconds * (p.rounds - p.round)


def facts(p: Progress, left: float) -> str:
    """``loss 1.234, accuracy 0.8123, 1.2 MB up, 1.2 MB down, 3 vanished, 2 min 5 s left``."""
    metric = [f"{k} {v:.4f}" for k, v in list(p.metrics.items())[:1]]
    lost = [f"{n} {k}" for k, n in p.refused.items()]
    parts = [f"loss {p.loss:.3f}", *metric, f"{size(p.up)} up, {size(p.down)} down", *lost]
    return ", ".join([*parts, *([f"{progress.clock(left)} left"] if left else [])])


def size(n: int) -> str:
    """850 B, 850 kB, 1.2 MB, 1.2 GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return f"{n} B"
