"""One run of the loop: looked for where it was left, trained, its best state put back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..core import CommonweightError
from .checkpoint import Store, read, same_settings
from .recipe import Recipe
from .trainer import Part, Progress, Run, quietly


def loop(
    host: Any,
    parts: Sequence[Part],
    recipe: Recipe,
    settings: dict[str, Any],
    checkpoint: str | Path | None,
    resume: bool,
    progress: Callable[[Progress], None] | None,
    around: AbstractContextManager[None],
) -> Run:
    """host: a `Host`, or a `Whole` model. settings: what a resumed run must share. around: in force while it trains.

    Raises: CommonweightError where an unfinished run lies at `checkpoint` that is not to be resumed, or was started
    with other settings."""
    store = None if checkpoint is None else Store(Path(checkpoint))
    found = store.newest() if store is not None else None
    if found is not None:
        if not resume:
            raise CommonweightError(
                f"{found.parent}: an unfinished run lies there; --resume continues it; or delete the folder"
            )
        same_settings(settings, read(found).facts.get("settings", {}), found.parent)
    with tempfile.TemporaryDirectory() as unused:
        run = quietly(lambda: Run(host, parts, recipe, settings, store, progress, unused))
        if found is not None:
            run.restore(found)
        if not run.done:
            with around:
                quietly(lambda: run.train(resume_from_checkpoint=None if found is None else str(found)))
    run.finish()
    return run
