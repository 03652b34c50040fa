"""Metrics of several processes as one text of Prometheus'."""

from __future__ import annotations

from collections.abc import Sequence


def gathered(texts: Sequence[str]) -> bytes:
    """Each family once, with the samples of all; what the texts say of it (HELP, TYPE) is the first one's.

    Samples of one name must differ in their labels from text to text.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for text in texts:
        about: set[str] = set()
        name = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                heads, _ = families.setdefault(name, ([], []))
                if name not in about and heads and line.split(" ", 2)[1] in {h.split(" ", 2)[1] for h in heads}:
                    continue  # an earlier text has said so
                heads.append(line)
            elif line and not line.startswith("#"):
                families[name][1].append(line)
    lines = [line for heads, samples in families.values() for line in (*heads, *samples)]
    return ("\n".join(lines) + "\n").encode("utf-8")
