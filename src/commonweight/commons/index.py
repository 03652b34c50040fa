"""The index: a copy of all manifests in one file, so that listing opens one file instead of ten thousand.

Derived and replaceable: each line is a manifest's file name and its bytes, which the digest in the name proves, so a
line is right or not used at all; what it lacks is read from the manifests. Deleting it costs time, nothing else. A line
is written after its manifest and taken out before it, so that a line without a manifest tells of one that was lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from ..formats import atomic
from .manifest import Entry, digest

FILE = "index.txt"
MARK = b"index 2"  # its first line: an index of before kept the lines of tenants that were removed


def _lines(root: Path) -> list[bytes]:
    try:
        return (root / FILE).read_bytes().split(b"\n")
    except OSError:
        return [b""]


def _key(line: bytes) -> str:
    return line.partition(b" ")[0].decode("utf-8", "replace")


def read(root: Path, wanted: Mapping[str, Entry]) -> tuple[dict[str, bytes], int]:
    """(bytes of those manifests that it has, by key; how many lines were of no use). wanted: by key."""
    out: dict[str, bytes] = {}
    lines = [line for line in _lines(root)[:-1] if line != MARK]
    for line in lines:
        file, text = _key(line), line.partition(b" ")[2]
        if file in wanted and digest(text) == wanted[file].digest:
            out[file] = text
    return out, len(lines) - len(out)


def append(root: Path, texts: Mapping[str, bytes], there: Collection[str]) -> None:
    """Lines more. Only under the store's lock; what a killed writer left of a line is cut off first. there: keys of
    the manifests that there are, of which alone an index of before keeps its lines."""
    try:
        if not _marked(root):
            kept = {_key(line): line.partition(b" ")[2] for line in _lines(root)[:-1]}
            rewrite(root, {**{k: v for k, v in kept.items() if k in there}, **texts})
            return
        with open(root / FILE, "a+b") as f:
            end = f.seek(0, os.SEEK_END)
            back = min(end, 1 << 20)
            f.seek(end - back)
            tail = f.read(back)
            if tail and not tail.endswith(b"\n"):
                f.truncate(end - back + tail.rfind(b"\n") + 1)
            f.write(_whole(texts))
    except OSError:
        pass  # an index that lacks a line is slower, not wrong


def rewrite(root: Path, texts: Mapping[str, bytes]) -> None:
    """The whole index anew, from manifests by file. Only under the store's lock."""
    atomic.write(root / FILE, MARK + b"\n" + _whole(texts))


def drop(root: Path, gone: Collection[str]) -> None:
    """Takes out the lines of these keys, before their manifests go. Only under the store's lock."""
    if _marked(root):
        kept = [line for line in _lines(root) if _key(line) not in gone]
        atomic.write(root / FILE, b"\n".join(kept))


def lost(root: Path, entries: Collection[Entry]) -> dict[str, bytes]:
    """Manifests, by key, that it has and the store has not. An index of before does not tell."""
    if not _marked(root):
        return {}
    there = {e.label for e in entries}
    found = {_key(line): line.partition(b" ")[2] for line in _lines(root)[1:-1] if _sound(line)}
    return {k: text for k, text in found.items() if (e := Entry.of(k)) is not None and e.label not in there}


def _marked(root: Path) -> bool:
    try:
        with open(root / FILE, "rb") as f:
            return f.readline() == MARK + b"\n"
    except OSError:
        return False


def _whole(texts: Mapping[str, bytes]) -> bytes:
    return b"".join(file.encode() + b" " + text + b"\n" for file, text in texts.items())


def damage(root: Path) -> list[str]:
    """What is wrong with it, line by line. A line that a killed writer did not end is not damage."""
    *lines, tail = _lines(root)
    bad = [
        f"line {n} was altered" for n, line in enumerate(lines, 1) if not (_sound(line) or (n == 1 and line == MARK))
    ]
    if tail and _sound(tail[:-1]):
        bad.append("its last byte was altered")
    return bad


def _sound(line: bytes) -> bool:
    file, _, text = line.partition(b" ")
    entry = Entry.of(file.decode("utf-8", "replace"))
    try:
        raw = json.loads(text)
        return entry is not None and digest(text) == entry.digest and (raw["name"], raw["version"]) == entry[1:3]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
