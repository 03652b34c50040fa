"""The one error a user can cause. The command line turns it into one line and exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

_LONGEST = 100  # letters of a name that are compared


class CommonweightError(ValueError):
    """Says where, what came, what was wanted, what to do."""


class Unknown(CommonweightError):
    """A name that nothing has. Its message may name what there is, which is not for everybody who asks over a wire."""


class WrongTask(CommonweightError):
    """A task that is said of who knows none or other ones, or that is not said of who goes by them."""


def first_line(e: BaseException) -> str:
    """What an error of another library says, without the rest of its lines."""
    text = str(e).strip() or type(e).__name__
    return text.splitlines()[0].rstrip(".")


def edits(a: str, b: str) -> int:
    """Letters that are added, lost, changed, or swapped with their neighbour, between two words.

    Source: optimal string alignment, https://en.wikipedia.org/wiki/Damerau-Levenshtein_distance. Cost: len(a) len(b).
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, before, row = before, row, [i + 1]
        for j, y in enumerate(b):
            row.append(min(before[j] + (x != y), before[j + 1] + 1, row[j] + 1))
            if i and j and x == b[j - 1] and y == a[i - 1]:
                row[-1] = min(row[-1], last[j - 1] + 1)
    return row[-1]


def nearest(came: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, in any case of letters; None where none is near.

    The fewest edits win, one in four letters at most; where that finds none, the most letters in common.
    """
    came = came[:_LONGEST]
    near = max(((-edits(came.lower(), n.lower()), _alike(came, n), n) for n in names if len(n) <= _LONGEST), default=())
    if near and -near[0] <= max(1, len(came) // 4):
        return near[2]
    lower = {n.lower(): n for n in names}
    return next((lower[n] for n in get_close_matches(came.lower(), lower, n=1, cutoff=0.5)), None)


def _alike(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


def unknown(what: str, came: object, known: Iterable[str], hint: str = "") -> Unknown:
    """Error for a name that is not known, with the nearest known one. came: of a file of YAML it may be no text."""
    names = sorted(known)
    near = nearest(str(came), names)
    tail = f"; did you mean {near!r}?" if near is not None else f"; known: {', '.join(names) or 'none'}"
    return Unknown(f"unknown {what} {came!r}{tail}{' ' + hint if hint else ''}")
