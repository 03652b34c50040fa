"""The one error a user can cause. The command line turns it into one line and exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CommonweightError(ValueError):
    """Says where, what came, what was wanted, what to do."""


def first_line(e: BaseException) -> str:
    """What an error of another library says, without the rest of its lines."""
    text = str(e).strip() or type(e).__name__
    return text.splitlines()[0].rstrip(".")


def _in_any_case(came: str, names: list[str]) -> list[str]:
    lower = {n.lower(): n for n in names}
    return [lower[n] for n in get_close_matches(came.lower(), lower, n=1, cutoff=0.5)]


def unknown(what: str, came: object, known: Iterable[str], hint: str = "") -> CommonweightError:
    """Error for a name that is not known, with the nearest known one. came: of a file of YAML it may be no text."""
    names = sorted(known)
    near = get_close_matches(str(came), names, n=1, cutoff=0.5) or _in_any_case(str(came), names)
    tail = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names) or 'none'}"
    return CommonweightError(f"unknown {what} {came!r}{tail}{' ' + hint if hint else ''}")
