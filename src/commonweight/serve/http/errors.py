"""Errors in the form of OpenAI's interface, with the types and codes that vLLM gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class Refused(Exception):
    """An answer that is an error. retry: seconds after which it may go well."""

    def __init__(
        self, status: int, message: str, param: str | None = None, kind: str | None = None, retry: float | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.retry = status, message, param, retry
        self.kind = kind or TYPES.get(status, TYPES[400 if status < 500 else 500])

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}

    @property
    def content(self) -> bytes:
        """ASCII alone: what came and is repeated may be no text at all."""
        return json.dumps(self.body).encode("ascii")

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's client tries again on its own where that is not forbidden."""
        if self.retry is not None:
            return {"retry-after": str(max(1, round(self.retry + 0.5)))}
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"x-should-retry": "false"}


_TOLD = 4  # ours: so many reasons of a union are told, which may have one for each of a thousand items
_OTHERS = {"max_new_tokens": "max_tokens"}


def of_request(message: str) -> Refused:
    """What the engine says is wrong with a request, by the field's name here."""
    for ours, theirs in _OTHERS.items():
        message = message.replace(ours, theirs)
    if message.startswith("structured output"):
        return Refused(400, message, "response_format")
    found = re.match(r"(?:a token in )?(\w+)(?: \d+)? (?:is|has|of|cannot)\b", message)
    return Refused(400, message, None if found is None else FIELDS.get(found[1]))


# what a message of the engine begins with -> the field
FIELDS = {
    name: name for name in (
        "max_tokens", "min_tokens", "top_k", "n", "temperature", "top_p", "min_p", "repetition_penalty", "seed",
        "presence_penalty", "frequency_penalty", "logprobs", "stop", "stop_token_ids", "logit_bias", "prompt",
        "cache_salt", "query", "text_1", "text_2",
    )
} | {"text": "input", "document": "documents"}  # fmt: skip


def of_body(errors: Sequence[Mapping[str, Any]]) -> Refused:
    """The first thing that is wrong with a body, of what pydantic found."""
    first = errors[0]
    if first.get("type") == "json_invalid":
        return Refused(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    at = _path(first)
    if not at:
        return Refused(400, "the body is missing or no JSON object; wanted one, with content-type application/json")
    name = at[0]
    if first.get("type") == "extra_forbidden":
        return Refused(400, f"{'.'.join(at)}: this server has no such field", name)
    told = [f"{'.'.join(_path(e))}: {str(e.get('msg', '')).removeprefix('Value error, ')}" for e in errors]
    of_union = any(_internal(p) for p in first["loc"])  # then each of its members says why it is not the one
    same = [t for t, e in zip(told, errors) if _path(e)[:1] == at[:1]] if of_union else told[:1]
    return Refused(400, "; or ".join([*dict.fromkeys(same)][:_TOLD]), name)


def _path(error: Mapping[str, Any]) -> list[str]:
    return [str(p) for p in error.get("loc", ()) if p != "body" and not _internal(p)]


def _internal(part: Any) -> bool:
    """Pydantic names the member of a union that it tried."""
    return isinstance(part, str) and re.search(r"[\[\]()-]|^(str|int|float|bool|list|dict)$", part) is not None
