"""What is said of a tenant that a store has now."""

from __future__ import annotations

from typing import Any

import typer

from ..core import counted


def published(m: Any, before: dict[str, int]) -> None:
    """m: its manifest; before: the newest versions as they were."""
    from ..commons.again import told

    if notice := told(m.label, m.version, before.get(m.name)):
        typer.echo(f"notice: {notice}", err=True)
    typer.echo(f"{m.label}: {counted(len(m.pools), 'pool')}, {sum(r.numbers for r in m.pools.values()):,} bytes")
