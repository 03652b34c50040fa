"""What is said of globs that fit no site."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from ..core import CommonweightError, Site, counted, fits, globs
from ..core.errors import edits, nearest
from ..methods import Method
from .sites import FAMILIES, USUAL, Pattern, misfit, without


def tell(tenant: str, config: Any, sites: Sequence[Site], every: Sequence[Site]) -> None:
    """Warns of each glob in a tenant's options that fits none of its sites: which are near, and what to write.

    sites: those that the tenant reads; every: all of the model. Of a pattern of several globs, which may be for models
    of several makes, one must fit.
    """
    given = globs(config)
    for option, glob in given:
        one_of = [g for o, g in given if o == option] if isinstance(getattr(config, option), str) else [glob]
        if not any(fits(s.name, g) for s in sites for g in one_of):
            warnings.warn(
                f"{tenant}: {option} names {glob!r}, which fits none of the {counted(len(sites), 'site')} that this "
                f"tenant reads, and does nothing; {_instead(glob, sites, every)}",
                stacklevel=3,
            )


def tell_of_sites(pattern: Pattern, chosen: Sequence[Site], every: Sequence[Site]) -> None:
    """Warns of each glob of `sites=` that fits nothing and is nearly the name of what was not chosen. A pattern may be
    for models of several makes, so that one which fits nothing here is no mistake by itself."""
    if not isinstance(pattern, str):
        return
    taken = {_tail(s.name) for s in chosen}
    left = {_tail(s.name) for s in every} - taken
    for glob in (without(g.strip()) for g in pattern.split("|")):
        if glob in (*FAMILIES, USUAL) or any(fits(s.name, glob) for s in every):
            continue
        near = _slip(_tail(glob), left)
        word = next((w for w in FAMILIES if edits(glob, w) == 1), None)
        if near is not None or word is not None:
            warnings.warn(
                f"sites={pattern!r}: {glob!r} fits no site of this model, and the rest of the pattern is taken alone; "
                f"did you mean {word or f'*{near}'!r}?",
                stacklevel=3,
            )


def tell_of_none(pattern: Pattern, method: Method, taken: Sequence[Site]) -> None:
    """Warns of a pattern that takes away what is not there."""
    warnings.warn(
        f"sites={pattern!r} takes away none of the {counted(len(taken), 'site')} that {method.name} reads; the first "
        f"is {taken[0].name}, {taken[0].kind}",
        stacklevel=4,
    )


def tell_of_widths(method: Method, taken: Sequence[Site], default: Sequence[Site]) -> None:
    """Warns where more than convolutions, whose patches are of any width, is left out for its widths."""
    there, roles = {s.name for s in taken}, {s.role for s in taken} & {*method.roles}
    rest = [s for s in default if s.name not in there and s.kind != "conv" and (not roles or s.role in method.roles)]
    left = [s for s in rest if misfit(method, s)]
    if left:
        warnings.warn(
            f"{method.name}: {counted(len(left), 'site')}, the first of them {left[0].name} ({left[0].out}, "
            f"{left[0].inp}), are left out: their widths do not fit {misfit(method, left[0])}; say another, or "
            "name the sites to take",
            stacklevel=3,
        )


def idle(method: Method, sites: Sequence[Site]) -> CommonweightError:
    """What is said of a tenant that would have no trainable number."""
    there = dict.fromkeys(s.kind for s in sites)
    missing = [k for k in method.kinds if k not in there]
    reads, todo = "", "give labels=, for a head of its own"
    if missing:
        kinds = " or ".join(missing)
        reads = f"; of its kinds it reads {counted(len(sites), 'site')} here, {' and '.join(there)}, and no {kinds}"
        todo = f"name sites of kind {kinds} where the model has them, or take another method, such as lora"
    return CommonweightError(f"{method.name} would have no trainable number, and change nothing{reads}; {todo}")


def _slip(tail: str, names: Iterable[str]) -> str | None:
    """The name that is one slip of the hand away: a letter more, less or another, or two of them swapped. q_proj and
    o_proj are no slip, nor are fc1 and fc3: what differs must be a word of four letters or more."""

    def word(name: str) -> bool:
        a, b = tail.split("_"), name.split("_")
        return len(a) != len(b) or all(x == y or max(len(x), len(y)) >= 4 for x, y in zip(a, b))

    return next((n for n in sorted(names) if edits(tail, n) == 1 and word(n)), None)


def _instead(glob: str, sites: Sequence[Site], every: Sequence[Site]) -> str:
    """What to write in its place."""
    for meant in (f"*.{glob}", f"*{glob}", f"{glob}*", f"*{glob}*"):
        if any(fits(s.name, meant) for s in sites):
            return f"a glob is of the whole name: write {meant!r}"
    if (there := next((s.name for s in every if fits(s.name, glob)), None)) is not None:
        return f"it fits {there}, which the model has and the tenant does not read: name it in sites= too"
    tails = dict.fromkeys(_tail(s.name) for s in sites)
    if (near := nearest(_tail(glob), tails)) is not None:
        return f"did you mean {f'*{near}'!r}, as in {next(s.name for s in sites if _tail(s.name) == near)}?"
    return f"its sites are {sites[0].name} to {sites[-1].name}"


def _tail(name: str) -> str:
    """The last part of a name with its dot, without its number; of a glob and of a pattern of PEFT, which is a regular
    expression, too."""
    bare = name.split("[")[0].replace("\\", "").rstrip("$*)")
    return f".{bare.rpartition('.')[2].lstrip('*')}"
