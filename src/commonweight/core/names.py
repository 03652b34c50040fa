"""Names that are safe as file names everywhere, and what names of sites and pools say of the layer they are of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from .errors import CommonweightError


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort by: layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def safe(name: str) -> str:
    """The name itself, if it is one: letters, digits, dot, dash, underscore; at most 100; not starting with a dot."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) or name.endswith("."):
        raise CommonweightError(
            f"{name!r} cannot be a tenant's name: use 1 to 100 letters, digits, '.', '-' or '_', not starting with '.'"
        )
    return name


def fits(name: str, glob: str) -> bool:
    """Whether a glob is of a site, or of a pool. ``proj[1]`` is expert 1 of proj, or its rows of that number, and not
    one of a set of letters; a glob without the brackets is of all of them, as is ``proj[*]``."""
    if name == glob or fnmatchcase(name, glob):
        return True
    if "[" not in name:
        return False
    return fnmatchcase(name, _NUMBERED.sub(r"[[]\1]", glob)) or fnmatchcase(_NUMBERED.sub("", name), glob)


_NUMBERED = re.compile(r"\[(\d+|\*)\]")


def by_layer(names: Sequence[str]) -> list[list[str]]:
    """Names of sites or pools by layer: the first number in a name; those without one are a layer together."""
    found: dict[str, list[str]] = {}
    for n in names:
        at = re.search(r"(?<![^.])\d+(?![^.])", n)
        found.setdefault(n[: at.end()] if at else "", []).append(n)
    return [*found.values()]
