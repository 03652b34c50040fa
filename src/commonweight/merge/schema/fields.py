"""What stands in a recipe, checked: an error says where, what came, and what was wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...core import CommonweightError, unknown
from .types import DTYPES

MOST_ROWS = 65_536  # that a multiple may add


def whole(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CommonweightError(f"{where} is {value!r}; wanted a whole number")
    return value


def padding(where: str, value: Any) -> int:
    """Rows are padded to a multiple of it."""
    if whole(where, value) > MOST_ROWS:
        raise CommonweightError(f"{where} is {value}; wanted at most {MOST_ROWS:,}")
    return value


def precision(where: str, value: Any) -> str | None:
    """A dtype of a result by its name, torch's prefix or not."""
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name is not None and name not in [*DTYPES]:
        raise unknown(where, str(value), DTYPES)
    return name


def keys(where: str, body: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in body:
        if key not in known:
            raise unknown(f"key in {where}", str(key), known)


def mapping(where: str, body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise CommonweightError(f"{where} is {body!r}; wanted names and values")
    return body


LEAST = {1: "one", 2: "two"}


def listed(where: str, body: Any, least: int = 1) -> list[Any]:
    if not isinstance(body, list) or len(body) < least:
        raise CommonweightError(
            f"{where} is {body!r}; wanted a list" + (f" of at least {LEAST[least]}" if least else "")
        )
    return body


def text(where: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise CommonweightError(f"{where} is {value!r}; wanted a path or a hub name")
    return value
