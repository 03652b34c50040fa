"""What the server says of itself at /openapi.json: the errors of every call, streams, and who needs a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from .door import OPEN
from .keys import Guard

_TOLD: dict[str, Any] = {
    "message": {"type": "string"},
    "type": {"type": "string"},
    "param": {"type": ["string", "null"]},
    "code": {"type": "integer"},
}
_FORM = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": [*_TOLD], "properties": _TOLD}},
}
_ERROR = {"description": "The error, in OpenAI's form.", "content": {"application/json": {"schema": _FORM}}}
ERRORS: dict[int | str, dict[str, Any]] = {c: _ERROR for c in (400, 401, 403, 404, 408, 413, 429, 500, 503)}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or its pieces with `stream`.", "content": {"text/event-stream": {}}}
}


def described(app: FastAPI, guard: Guard) -> Callable[[], dict[str, Any]]:
    """In the place of `app.openapi`. A body that is wrong is answered by 400 here, not by FastAPI's 422; a key is
    needed where there is a file of keys, and by no call that stands open."""
    plain = app.openapi

    def told() -> dict[str, Any]:
        new, found = app.openapi_schema is None, plain()
        if new:
            for path, calls in found["paths"].items():
                for call in calls.values():
                    call["responses"].pop("422", None)
                    if path in OPEN:
                        call.pop("security", None)
                    elif not guard.guarded:
                        call["security"] = [{}, *call.get("security", [])]
            for unused in ("HTTPValidationError", "ValidationError"):
                found.get("components", {}).get("schemas", {}).pop(unused, None)
        return found

    return told
