"""Tenants of a store that stand on others: what they need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..core import CommonweightError
from .manifest import Entry, Manifest

if TYPE_CHECKING:
    from ..host import Host


def standing(texts: Iterable[tuple[Entry, bytes]], read: Callable[[Entry, bytes], Manifest]) -> dict[str, list[str]]:
    """{``name@version`` that is stood on: labels of what stands on it}. Only manifests with parents are parsed."""
    out: dict[str, list[str]] = {}
    for entry, text in texts:
        if b'"parents":[]' not in text:
            for label in read(entry, text).below:
                out.setdefault(label, []).append(entry.label)
    return out


def free(where: str, gone: Sequence[Entry], found: dict[str, list[str]]) -> None:
    """Raises: CommonweightError where something that stays stands on what is to go."""
    going = {e.label for e in gone}
    for e in gone:
        if left := sorted({x.partition("@")[0] for x in found.get(e.label, ()) if x not in going}):
            names = ", ".join(left)
            raise CommonweightError(
                f"{where}: {e.label} cannot be removed: {names} stand{'s' * (len(left) == 1)} on it; remove that first"
            )


def below(host: Host, name: str, there: Callable[[str], Iterable[Any]]) -> list[str]:
    """Labels of the stored tenants that one of the host stands on, the newest version with its numbers of each.

    there: (name) -> what is stored under it, the newest first. Raises: CommonweightError where none has its numbers."""
    from ..host.files import same

    out = []
    for t in host[name].over:
        label = next((s.label for s in there(t.name) if same(t, s)), None)
        if label is None:
            raise CommonweightError(
                f"{name}: it stands on {t.name!r}, which the store does not have with these numbers; publish that "
                "first, or both together with publish_all"
            )
        out.append(label)
    return out


def batches(host: Host, names: Sequence[str]) -> list[list[str]]:
    """The names so that each comes after those among them that it stands on."""
    rest, out = [*names], []
    while rest:
        left = {id(host[n]) for n in rest}
        now = [n for n in rest if not any(id(t) in left for t in host[n].over)]
        out.append(now)
        rest = [n for n in rest if n not in now]
    return out or [[]]
