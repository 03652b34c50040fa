"""A tenant that is published once more: which of its versions it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .blueprint import CHECK
from .incoming import Incoming
from .manifest import Entry, Manifest

ASIDE = "metrics", "version", "digest"  # of a header: what was measured, and which release wrote it, are no content


def again(given: Incoming, there: Manifest | None) -> Manifest | None:
    """The version that is there already, where it has the same content: itself, or with the metrics that are given.

    None where the content is another, and a new version is due. Content: pools, and what the header says of them;
    parents count where they are given.
    """
    if there is None or dict(there.pools) != dict(given.refs):
        return None
    if _content(there.tenant, there.pools) != _content(given.header, given.refs):
        return None
    if given.parents and given.parents != there.parents:
        return None
    metrics = given.header.get("metrics")
    if not metrics or metrics == there.tenant.get("metrics"):
        return there
    return replace(there, tenant={**there.tenant, "metrics": metrics})


def told(label: str, version: int, before: int | None) -> str | None:
    """What a person should know about a tenant that was there before, under its newest version's number."""
    if before is None:
        return None
    name = label.rpartition("@")[0]
    if version == before:
        return f"{label} has this content already: no new version was made"
    return f"{name} existed with other content: {label} is now its newest version, and {name}@{before} stays"


def _content(header: Mapping[str, Any], pools: Iterable[str]) -> str:
    """Its own tensors by name, whether the header names them, says that all are (True), or none."""
    said = header.get("own") or ()
    own = sorted({*pools} - {CHECK}) if said is True else sorted(said)
    return json.dumps({**{k: v for k, v in header.items() if k not in ASIDE}, "own": own}, sort_keys=True)


def once(entries: Iterable[Entry]) -> list[Entry]:
    """One file for each version. There are two where a writer was killed between writing it with other metrics and
    taking the one before: both are whole."""
    return [*{e.label: e for e in sorted(entries, key=lambda e: e.digest)}.values()]
