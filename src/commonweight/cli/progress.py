"""How far a training is: a bar where there is a terminal, a line at times where there is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..adapt import Progress

EVERY = 30.0  # seconds between lines, besides those of epochs
LEAST = 2.0  # epochs that end sooner after a line have none of their own


class Pace:
    """Tokens a second and seconds left, from the end of the first step on, before which a model was loaded; what
    measuring the dev rows took counts for the second."""

    def __init__(self) -> None:
        self.started = self.before = time.monotonic()
        self.first: int | None = None
        self.tokens, self.seconds, self.seen, self.memory = 0, 0.0, 0, 0

    def add(self, p: Progress) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = p.step, now
        elif p.dev is None:  # else the time is not the step's alone
            self.tokens, self.seconds = self.tokens + p.tokens - self.seen, self.seconds + now - self.before
        self.before, self.seen, self.memory = now, p.tokens, p.memory

    @property
    def rate(self) -> float | None:
        """None before the second step, and of images and sounds, which have no tokens."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    @property
    def told(self) -> str:
        """``1,234 tokens/s, at most 1.2 GB of memory``; what was not measured is left out."""
        parts = [] if self.rate is None else [f"{self.rate:,.0f} tokens/s"]
        return ", ".join([*parts, *([f"at most {size(self.memory)} of memory"] if self.memory else [])])

    def left(self, p: Progress) -> float | None:
        done = p.step - (self.first or p.step)
        return (self.before - self.started) / done * (p.steps - p.step) if done else None


def quiet() -> None:
    """transformers' own bars and notes are left out: a command says what there is to say."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


class Bar:
    """Progress on stderr: a bar where that is a terminal; elsewhere a line every half minute, at the end of an epoch
    and after each measurement of the dev rows. Both have loss, learning rate, tokens a second and time left."""

    def __init__(self, shown: bool = True):
        self.shown = shown  # of several processes, by the first alone

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        quiet()
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self.bar = Progress(
            *columns, TextColumn("{task.fields[told]}", markup=False), console=self.console,
            disable=not self.console.is_terminal,
        )  # fmt: skip
        self.row: Any = None
        self.pace = Pace()
        self.last = self.pace.started
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        if not self.shown:
            return
        self.console.print(text, markup=False, soft_wrap=True)

    def __call__(self, p: Progress) -> None:
        self.pace.add(p)
        if self.row is None:
            self.row = self.bar.add_task(p.tenant, total=p.steps, told="")
        self.bar.update(self.row, completed=p.step, told=facts(p, self.pace))
        now, end = time.monotonic(), p.step >= p.steps
        ended = p.epoch == int(p.epoch) and now - self.last >= LEAST
        if not self.console.is_terminal and (end or ended or now - self.last >= EVERY):
            self.last = now
            self.say(f"step {p.step}/{p.steps}, epoch {p.epoch:.3g}: {facts(p, self.pace)}")
        if p.dev is not None:
            # of several tenants, each one's metric that is watched: the first, as of the mean
            first = next(iter(p.dev))
            each = [(k, v) for k, v in p.dev.items() if k.endswith(f"/{first}")]
            told = [(first, p.dev[first]), *each] if each else [(k, v) for k, v in p.dev.items() if k != "n"]
            self.say(f"step {p.step}/{p.steps}: dev " + ", ".join(f"{k} {v:.4f}" for k, v in told))


def facts(p: Progress, pace: Pace) -> str:
    """``loss 1.234, lr 9.5e-04, 1,234 tokens/s, 2 min 5 s left``."""
    rate, left = pace.rate, pace.left(p)
    more = ("" if rate is None else f", {rate:,.0f} tokens/s") + ("" if left is None else f", {clock(left)} left")
    return f"loss {p.loss:.3f}, lr {p.rate:.1e}{more}" + (f", {size(p.memory)}" if p.memory else "")


def size(n: int) -> str:
    """850 MB, 1.2 GB."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
