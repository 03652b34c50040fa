"""How much memory a container lets this process have, in Linux' control groups of both versions.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max; a limit of an outer group holds inside too) and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html (memory.limit_in_bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_FILES = {"memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes"), "": ("sys/fs/cgroup", "memory.max")}


def limit(root: Path = Path("/")) -> int | None:
    """Bytes: the least limit of the process's group and of those around it; None where there is none, or no Linux.
    Version 1 writes a number near 2**63 for none. root: where proc and sys lie."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [n for line in lines for n in _limits(root, line)]
    return min(found, default=None)


def _limits(root: Path, line: str) -> Iterator[int]:
    """Of one line of proc/self/cgroup: number, controllers of version 1 or nothing, path of the group."""
    _, controllers, path = [*line.split(":", 2), "", ""][:3]
    for controller in controllers.split(","):
        if controller not in _FILES:
            continue
        home, name = _FILES[controller]
        group = PurePosixPath("/", path.lstrip("/"))
        for at in (group, *group.parents):  # a container may see the path as its host does, and itself at the top
            try:
                told = (root / home / at.relative_to("/") / name).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                continue
            if told.isdecimal():  # "max": none
                yield int(told)
