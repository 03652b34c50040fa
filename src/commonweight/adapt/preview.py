"""What a run understood of its rows, told before its first step."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import counted
from .data import Data, Understood
from .rows import there
from .tasks import Example, Seen, Task
from .tasks.base import length, told

LONGEST = 1200  # characters of the row that is shown


def preview(data: Data, got: Understood) -> str:
    """Columns, rows, tokens, what was cut or left out, and one row with the part that is scored marked."""
    names = there(data.rows)
    used = got.seen.used
    unused = [c for c in names if c not in used.values()]
    head = ", ".join(f"{what} is {column!r}" for what, column in used.items())
    if unused:
        head += f" (columns not used: {', '.join(unused)})"
    out = [tally(data.sources[0], got.task, got.train, got.seen, head)]
    if got.dev:
        name = data.sources[1] if data.sources[1] != data.sources[0] else f"{data.sources[0]}, held out"
        out.append(tally(name, got.task, got.dev, got.dev_seen))
    out.append("one row, what is scored between ⟦ and ⟧:\n" + indented(shorter(got.task.shown(got.train[0]))))
    return "\n".join(out)


def tally(name: str, task: Task, examples: Sequence[Example], seen: Seen | None = None, head: str = "") -> str:
    """One line: rows, examples, tokens and what was lost."""
    seen = seen or task.seen
    parts = [told(seen.rows, "rows"), *([head] if head else [])]
    if len(examples) != seen.rows:
        parts.append(told(len(examples), "examples"))
    tokens, scored = (sum(n) for n in zip(*(task.tokens(e) for e in examples)))
    longest = max(map(length, examples))
    if tokens:
        parts.append(
            f"{counted(tokens, 'token')}"
            + (f", {scored:,} of them scored" if scored else "")
            + f", {longest} in the longest"
        )
    return f"{name}: " + "; ".join([*parts, *([seen.note] if seen.note else [])])


def shorter(text: str) -> str:
    """The middle left out of what is too long for a screen."""
    over = len(text) - LONGEST
    half = LONGEST // 2
    return text if over <= 0 else f"{text[:half]} [... {counted(over, 'character')} ...] {text[-half:]}"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
