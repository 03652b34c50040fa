"""What a recipe was made into: the tasks of a merge, and what else its result needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schema.types import Recipe
from ..sources.source import Source
from ..stream.work import Task


@dataclass(frozen=True, eq=False)
class Built:
    """tasks: in the order of work; sources: name in the recipe -> model; lead: whose config is taken, words: whose
    tokenizer.

    config, tokenizer: the result's config.json, where the lead has one; its tokenizer.json, where it is not the lead's.
    hub: the models that came from there. generation: the result's generation_config.json, where it is not the lead's.
    """

    recipe: Recipe
    tasks: tuple[Task, ...]
    sources: Mapping[str, Source]
    lead: Path
    notices: tuple[str, ...]
    config: Mapping[str, Any] | None = None
    tokenizer: str | None = None
    hub: tuple[str, ...] = ()
    words: Path | None = None
    generation: Mapping[str, Any] | None = None
