"""Recipes: what is merged with what, and how, as a file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core import CommonweightError
from ...core.readable import read_text, read_yaml, within
from ..schema import mergekit, mixture, own
from ..schema.types import Recipe

__all__ = ["Recipe", "load"]


def load(recipe: str | Path | Mapping[str, Any]) -> Recipe:
    """A recipe from a YAML file, its text, or what it would be as a mapping; mergekit's have the key merge_method,
    those of mergekit-moe the key experts.

    Raises: CommonweightError for a file that is missing, no YAML or beyond the bounds of `read_yaml`, and for every
    key, method and option that is not known, with the nearest that is.
    """
    folder, text = Path(), ""
    if not isinstance(recipe, Mapping):
        path = Path(recipe)
        text, folder = read_text(path, "recipe"), path.parent
        recipe = parse(path, text)
    else:
        within(recipe, "recipe")
    schema = mixture if mixture.is_mixture(recipe) else mergekit if "merge_method" in recipe else own
    found = schema.read(recipe)
    return replace(found, folder=str(folder), text=text or _dump(recipe))


def parse(path: Path, text: str) -> Mapping[str, Any]:
    """A recipe's text as keys and values; path: for errors."""
    body = read_yaml(text, path)
    if not isinstance(body, Mapping):
        raise CommonweightError(f"{path}: wanted keys and values, as in `method: ties`")
    return body


def _dump(body: Mapping[str, Any]) -> str:
    import yaml

    def plain(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {str(k): plain(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [plain(v) for v in x]
        return x if x is None or isinstance(x, bool | int | float | str) else str(x)

    return yaml.safe_dump(plain(body), sort_keys=False, allow_unicode=True)
