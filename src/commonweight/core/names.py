"""Names that are safe as file names everywhere."""

from __future__ import annotations

import re

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
