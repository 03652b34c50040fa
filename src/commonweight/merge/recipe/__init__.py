"""Recipes: what is merged with what, and how, as a file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core import CommonweightError
from ..schema import mergekit, own
from ..schema.types import Recipe

__all__ = ["Recipe", "load"]


def load(recipe: str | Path | Mapping[str, Any]) -> Recipe:
    """A recipe from a YAML file, its text, or what it would be as a mapping; mergekit's have the key merge_method.

    Raises: CommonweightError for a file that is missing or no YAML, and for every key, method and option that is not
    known, with the nearest that is.
    """
    folder, text = Path(), ""
    if not isinstance(recipe, Mapping):
        path = Path(recipe)
        try:
            text, folder = path.read_text(encoding="utf-8"), path.parent
        except FileNotFoundError:
            raise CommonweightError(f"{path}: no such recipe") from None
        except (OSError, UnicodeDecodeError) as e:
            raise CommonweightError(f"{path}: cannot be read: {e}") from e
        recipe = parse(path, text)
    _ends(recipe, ())
    found = (mergekit if "merge_method" in recipe else own).read(recipe)
    return replace(found, folder=str(folder), text=text or _dump(recipe))


def parse(path: Path, text: str) -> Mapping[str, Any]:
    """A recipe's text as keys and values; path: for errors."""
    import yaml

    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CommonweightError(f"{path}{line}: no YAML: {getattr(e, 'problem', None) or e}") from None
    except (ValueError, RecursionError) as e:  # a date of no calendar, brackets by the thousand
        raise CommonweightError(f"{path}: no YAML: {e}") from None
    if not isinstance(body, Mapping):
        raise CommonweightError(f"{path}: wanted keys and values, as in `method: ties`")
    return body


def _ends(value: Any, within: tuple[int, ...]) -> None:
    """Raises: CommonweightError for what contains itself, as an alias (&x, *x) can make it."""
    if isinstance(value, Mapping | list | tuple):
        if id(value) in within or len(within) > 50:
            raise CommonweightError("recipe: it contains itself, or is nested more than 50 deep")
        for v in value.values() if isinstance(value, Mapping) else value:
            _ends(v, (*within, id(value)))


def _dump(body: Mapping[str, Any]) -> str:
    import yaml

    def plain(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {str(k): plain(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [plain(v) for v in x]
        return x if x is None or isinstance(x, bool | int | float | str) else str(x)

    return yaml.safe_dump(plain(body), sort_keys=False, allow_unicode=True)
